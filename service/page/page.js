// Draws what /events tells: `history` once, then a `frame` a second. All texts go in as text, never as markup.
"use strict";

const STALE_MILLISECONDS = 3500;
const RETRY_MILLISECONDS = 2000;
const MINUTE = 60;
const MINUTES_AT_MOST = 5;
const SVG = "http://www.w3.org/2000/svg";
const MARKS = { ok: "✓", notice: "!", bad: "✕" };
const at = (id) => document.getElementById(id);

let source = null;
let frame = null;
let framedAt = 0;
let paused = false;
let ended = false;
let points = [];
let cellSeconds = 5;
let cellCount = 60;
const cells = new Map(); // shard -> Map(number of the cell -> [share, throttles])
const rows = new Map(); // shard -> its row of the table

// The connection

function connect() {
  source = new EventSource("events");
  source.addEventListener("history", (event) => takeHistory(JSON.parse(event.data)));
  source.addEventListener("frame", (event) => takeFrame(JSON.parse(event.data)));
  source.addEventListener("end", () => { ended = true; });
  source.addEventListener("error", () => {
    // By itself the browser would give up after some answers, and after others try at once.
    source.close();
    setTimeout(connect, RETRY_MILLISECONDS);
    showLink();
  });
}

function takeHistory(history) {
  ended = false;
  points = history.points;
  cellSeconds = history.cell_seconds;
  cellCount = history.cell_count;
  cells.clear();
  for (const [shard, strip] of Object.entries(history.cells)) cells.set(shard, toMap(strip));
}

function takeFrame(news) {
  const last = points.length ? points[points.length - 1][0] : 0;
  // A clock that was set back begins a new curve.
  if (news.at < last - 2) points = [];
  points.push(...news.points.filter((point) => !points.length || point[0] > points[points.length - 1][0]));
  points = points.filter((point) => point[0] > news.at - MINUTES_AT_MOST * MINUTE);
  for (const shard of news.shards) {
    if (!cells.has(shard.id)) cells.set(shard.id, new Map());
    const strip = cells.get(shard.id);
    for (const [number, cell] of toMap(shard.cells)) strip.set(number, cell);
  }
  frame = news;
  framedAt = performance.now();
  if (!paused) draw();
  showLink();
}

const toMap = (strip) => new Map(Object.entries(strip).map(([number, cell]) => [Number(number), cell]));

function showLink() {
  const age = (performance.now() - framedAt) / 1000;
  const isLost = !frame || age * 1000 > STALE_MILLISECONDS;
  let state = "live";
  let words = "Live";
  if (isLost) {
    state = frame ? "lost" : "connecting";
    words = "Connecting to the daemon";
    if (frame) words = ended ? "The daemon has stopped; what follows was its last word." : "No word from the daemon.";
  } else if (paused) {
    state = "paused";
    words = "Paused";
  }
  document.body.dataset.link = state;
  setText("link", words);
  // Apart, and not read out: it changes every second.
  setText("age", isLost && frame ? `Figures of ${clock(frame.at)}, ${duration(age)} ago; trying again.` : "");
  if (isLost && frame) document.title = "? Millrace";
}

// Words and numbers

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const rate = (value) => (value > 0 && value < 9.95 ? tenth : whole).format(value);
const percent = (share) => `${whole.format(Math.floor(share * 100))} %`;
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit++) bytes /= 1024;
  return `${(unit && bytes < 99.95 ? tenth : whole).format(bytes)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${tenth.format(seconds)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

function ago(moment, now) {
  if (!moment) return "never";
  return now - moment < 1.5 ? "just now" : `${duration(Math.round(now - moment))} ago`;
}

function setText(id, text) {
  const element = typeof id === "string" ? at(id) : id;
  // Writing the same again would have some screen readers read it again.
  if (element.textContent !== String(text)) element.textContent = text;
}

function make(tag, text, ...classes) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  element.classList.add(...classes);
  return element;
}

function fill(id, elements) {
  at(id).replaceChildren(...elements);
}

// The page

function draw() {
  setText("about", `${frame.source} → ${frame.kinesis_stream}`);
  setText("version", `Millrace ${frame.version}`);
  drawVerdict();
  drawFigures();
  drawStream();
  drawChart();
  drawShards();
  drawLists();
}

function drawVerdict() {
  const [worst, ...more] = frame.conditions;
  at("verdict").dataset.level = worst.level;
  at("verdict-mark").setAttribute("href", `#mark-${worst.level}`);
  setText("verdict-title", worst.title);
  setText("verdict-detail", worst.detail);
  at("verdict-more").hidden = !more.length;
  const texts = more.map((condition) => `${condition.title}. ${condition.detail}`);
  if (texts.join("\n") !== [...at("verdict-more").children].map((item) => item.textContent).join("\n")) {
    fill("verdict-more", texts.map((text) => make("li", text)));
  }
  document.title = `${MARKS[worst.level]} ${worst.title} – Millrace`;
}

function drawFigures() {
  const { buffer, producer } = frame;
  setText("source", frame.source === "stdin" ? "standard input" : "X");
  setText("rate-in", rate(frame.in_per_second));
  setText("rate-out", rate(frame.out_per_second));

  setText("buffered", whole.format(buffer.posts));
  setText("oldest", buffer.posts ? duration(Math.max(0, ...frame.shards.map((shard) => shard.oldest_seconds))) : "–");
  setText("on-disk", buffer.journal_limit ? whole.format(buffer.on_disk) : "–");
  drawBar("memory", buffer.bytes, buffer.limit);
  drawBar("journal", buffer.journal_bytes, buffer.journal_limit);

  setText("delay-x", duration(frame.lag_p95));
  setText("delay-kinesis", duration(frame.delivery_p95));
  setText("delay-whole", duration(frame.whole_p95));

  setText("in-flight", `${producer.requests_in_flight} of at most ${producer.window}`);
  setText("requests", whole.format(frame.requests));
  setText("failed-requests", whole.format(frame.failed_requests));
  setText("retries", whole.format(frame.retries));
  setText("violations", whole.format(frame.order_violations));

  const dropped = Object.entries(frame.dropped);
  const droppedInAll = dropped.reduce((sum, [, count]) => sum + count, 0);
  for (const name of ["received", "recovered", "delivered", "duplicate"]) setText(name, whole.format(frame[name]));
  setText("dropped", whole.format(droppedInAll));
  setText("waiting", whole.format(buffer.posts));
  fill("reasons", dropped.map(([reason, count]) => {
    const item = make("li");
    item.append(make("span", reason), make("span", whole.format(count)));
    return item;
  }));
  const difference = frame.received + frame.recovered - frame.delivered - frame.duplicate - droppedInAll - buffer.posts;
  setText("balance", difference ? `${whole.format(difference)} posts are not accounted for: report it.` : "✓ The sums agree.");

  const isOnDemand = frame.mode === "ON_DEMAND";
  setText("bill-unit", isOnDemand ? "by the byte, each record rounded up to 1 KB" : "payload units of 25 KB");
  setText("bill", isOnDemand ? size(frame.billed_bytes) : whole.format(frame.billed_units));
  const without = frame.billed_units + frame.saved_units;
  let saved = "";
  if (!isOnDemand && frame.saved_units) {
    saved = `A record a post would be ${whole.format(without)} at least: aggregation saves ${percent(frame.saved_units / without)}.`;
  }
  setText("saved", saved);
}

function drawBar(name, bytes, limit) {
  // What reaches the limit comes in whole, so there may be a little more than that.
  const words = bytes < limit ? `${size(bytes)} of ${size(limit)}` : `${size(bytes)}, full at ${size(limit)}`;
  drawMeter(name, bytes, limit, limit ? words : "off");
}

function drawMeter(name, value, limit, words) {
  const share = limit ? Math.min(1, value / limit) : 0;
  const bar = at(`${name}-bar`);
  setText(name, words);
  bar.hidden = !limit;
  bar.setAttribute("aria-valuenow", Math.round(share * 100));
  bar.setAttribute("aria-valuetext", words);
  bar.toggleAttribute("data-full", share >= 0.9);
  // Through the object model: the policy of the page forbids styles in attributes.
  bar.firstElementChild.style.width = `${share * 100}%`;
}

function drawStream() {
  const { x, checks } = frame;
  const check = checks.stream;
  const isInput = frame.source === "stdin";
  setText("stream-title", isInput ? "Standard input" : "Connection to X");
  const state = check.ok ? "open" : check.reason === "starting" ? "starting" : "not open";
  setText("stream-state", `${state}, for ${duration(Math.max(0, Math.round(frame.at - check.since)))}`);
  setText("signal", ago(frame.signal_at, frame.at));
  setText("last-post", ago(frame.received_at, frame.at));
  const wait = frame.retry_at - frame.at;
  setText("retry", frame.retry_at ? (wait > 0.5 ? `in ${duration(Math.ceil(wait))}` : "now") : "–");
  setText("reconnects", whole.format(frame.reconnects));
  setText("gap", x.gap_seconds ? duration(x.gap_seconds) : "none");
  setText("missed", whole.format(x.posts_missed + x.posts_missing));
  setText("backfilled", whole.format(x.posts_backfilled));
  at("month-rows").hidden = isInput;
  const month = whole.format(x.month_posts);
  drawMeter("month", x.month_posts, x.month_budget, x.month_budget ? `${month} of ${whole.format(x.month_budget)}` : month);
}

// A young daemon has a short past: it fills the width too.
function minutes() {
  const past = points.length ? frame.at - points[0][0] : 0;
  return Math.min(MINUTES_AT_MOST, Math.max(1, Math.ceil(past / MINUTE)));
}

function drawChart() {
  const seconds = minutes() * MINUTE;
  at("chart").setAttribute("viewBox", `0 0 ${seconds} 100`);
  // The picture is stretched to the width of the page; this keeps the hatching aslant.
  at("hatch").setAttribute("width", seconds / 75);
  at("grid").setAttribute("d", `M0 50H${seconds}M0 .5H${seconds}`);
  setText("chart-start", minutes() === 1 ? "a minute ago" : `${minutes()} minutes ago`);
  const top = ceiling(Math.max(1, ...points.map((point) => Math.max(point[1], point[2]))));
  const x = (point) => (seconds - (frame.at - point[0])).toFixed(2);
  const y = (value) => (100 - (value / top) * 98).toFixed(2);
  let area = "";
  let line = "";
  let previous = null;
  for (const run of runs(points)) {
    const steps = run.map((point) => `${x(point)} ${y(point[1])}`).join("L");
    area += `M${x(run[0])} 101L${steps}L${x(run[run.length - 1])} 101Z`;
    line += `M${run.map((point) => `${x(point)} ${y(point[2])}`).join("L")}`;
  }
  at("area-in").setAttribute("d", area);
  at("line-out").setAttribute("d", line);
  const gaps = [];
  for (const point of points) {
    if (previous && !point[3]) gaps.push([Number(x(previous)), Number(x(point))]);
    previous = point;
  }
  fill("gaps", merged(gaps).map(([from, to]) => makeRectangle(from, 0, to - from, 100)));
  at("gap-key").hidden = !gaps.length;
  setText("chart-top", points.length ? `${whole.format(top)} a second` : "no posts yet");
  const highest = Math.max(0, ...points.map((point) => point[1]));
  at("chart").setAttribute("aria-label",
    `The last ${minutes()} minutes: now ${rate(frame.in_per_second)} in and ${rate(frame.out_per_second)} out a second, highest ${rate(highest)} in`);
}

// Looks that are further apart are not joined by a line: nobody looked in between.
function runs(all) {
  const found = [];
  for (const point of all) {
    const last = found[found.length - 1];
    if (last && point[0] - last[last.length - 1][0] < 5) last.push(point);
    else found.push([point]);
  }
  return found;
}

function merged(spans) {
  const found = [];
  for (const [from, to] of spans) {
    const last = found[found.length - 1];
    if (last && from - last[1] < 0.01) last[1] = to;
    else found.push([from, to]);
  }
  return found;
}

// The next of 1, 2, 5, 10, 20, ...: a scale that jumps seldom.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value);
}

function drawShards() {
  const more = frame.shard_count - frame.shards.length;
  at("shards-note").hidden = frame.shard_count > 0 && !more;
  setText("shards-note", more ? `${more} more shards are as well as the best of these, or better.` : "They are not known yet.");
  const present = frame.shards.map((shard) => shard.id);
  if (present.join() !== [...rows.keys()].join()) {
    rows.clear();
    for (const shard of present) rows.set(shard, makeRow(shard));
    fill("shards", [...rows.values()].map((row) => row.element));
  }
  const newest = Math.floor(frame.at / cellSeconds);
  const shown = Math.min(cellCount, Math.ceil((minutes() * MINUTE) / cellSeconds));
  setText("strip-head", minutes() === 1 ? "last minute" : `last ${minutes()} minutes`);
  for (const shard of frame.shards) {
    const row = rows.get(shard.id);
    const strip = cells.get(shard.id);
    for (const number of strip.keys()) if (number <= newest - cellCount) strip.delete(number);
    row.strip.setAttribute("viewBox", `${cellCount - shown} 0 ${shown} 10`);
    for (let place = 0; place < cellCount; place++) {
      const [share, throttles] = strip.get(newest - cellCount + 1 + place) || [null, 0];
      row.shares[place].setAttribute("class", share === null ? "none" : shade(share));
      row.hits[place].setAttribute("class", throttles ? "hit" : "none");
    }
    setText(row.pace, percent(shard.share));
    const since = shard.oldest_seconds >= 1 ? `, ${duration(shard.oldest_seconds)}` : "";
    setText(row.waiting, whole.format(shard.waiting) + since);
    setText(row.throttled, whole.format(shard.throttles));
    setText(row.records, rate(shard.records_per_second));
    setText(row.bytes, size(shard.bytes_per_second));
  }
}

const shade = (share) => (share >= 0.995 ? "c0" : share >= 0.75 ? "c1" : share >= 0.5 ? "c2" : share >= 0.25 ? "c3" : "c4");

function makeRow(shard) {
  const row = { element: make("tr"), shares: [], hits: [] };
  const name = make("th", shard.replace(/^shardId-0*(?=\d)/, ""));
  name.scope = "row";
  name.title = shard;
  const strip = document.createElementNS(SVG, "svg");
  strip.setAttribute("preserveAspectRatio", "none");
  strip.setAttribute("aria-hidden", "true");
  strip.classList.add("strip");
  row.strip = strip;
  for (let place = 0; place < cellCount; place++) {
    row.shares.push(strip.appendChild(makeRectangle(place + 0.05, 0, 0.9, 10)));
    row.hits.push(strip.appendChild(makeRectangle(place + 0.05, 6, 0.9, 4)));
  }
  const cell = make("td");
  cell.append(strip);
  row.element.append(name, cell);
  for (const column of ["pace", "waiting", "throttled"]) row[column] = row.element.appendChild(make("td"));
  for (const column of ["records", "bytes"]) row[column] = row.element.appendChild(make("td", undefined, "spare"));
  return row;
}

function makeRectangle(x, y, width, height) {
  const rectangle = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries({ x, y, width, height })) rectangle.setAttribute(name, value);
  return rectangle;
}

function drawLists() {
  at("events-empty").hidden = frame.events.length > 0;
  fill("events", [...frame.events].reverse().map((event) => {
    const item = make("li");
    const time = make("time", clock(event.at));
    time.dateTime = new Date(event.at * 1000).toISOString();
    const words = event.count > 1 ? `${event.text} (${whole.format(event.count)} times)` : event.text;
    item.append(time, make("span", event.place, "place"), make("span", words, "words", event.level));
    return item;
  }));
  const shown = frame.last_posts;
  at("posts-note").hidden = Boolean(shown && shown.length);
  setText("posts-note", shown ? "None yet." : "They are not shown. MILLRACE_SHOW_POSTS=on shows their ids and authors to all who may open this page.");
  fill("posts", [...(shown || [])].reverse().map((post) => {
    const item = make("li");
    item.append(make("span", post.id), make("span", post.author || "–", "author"));
    return item;
  }));
}

at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  if (!paused && frame) draw();
  showLink();
});
setInterval(showLink, 500);
connect();
