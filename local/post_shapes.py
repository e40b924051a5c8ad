"""
What an invented post looks like: words, scripts, fields and sizes, in the proportions of recorded streams.

Rules it obeys:

* Everything is invented and looks so: the words are about a water mill, hosts end in `.example`, and no text, name
  or number comes from a real post.
* The order of keys is arbitrary, as X says of its own lines; each post has its own.
* Every text holds the word `millrace`, so the rule `millrace` matches all posts. Other words, languages and kinds of
  posts give rules that match some of them.
* What breaks careless readers is in: characters that `str.splitlines` takes for line ends (U+2028, U+0085), NUL as
  an escape, emoji both as UTF-8 and as surrogate escapes, escaped line feeds, `&` as `&amp;`, empty objects, partial
  errors beside good data, and posts of tens of kilobytes.

1,189 recorded lines have a mean of 3.6 KB, a median of 2.6 KB, a 99th percentile of 19 KB and a maximum of 38 KB; a
third of them has default fields only. Recorded streams are mostly English; here other scripts are more frequent,
because they are what goes wrong. Invented posts have a mean of about 1.2 KB, since the rates that are asked of one
machine are those of small posts.
"""

import json
import re
from itertools import accumulate
from random import Random
from typing import Any

# Where `local.posts` writes the id and the time of the moment in which the post is sent.
ID_SLOT = "{id}"
CREATED_SLOT = "{created_at}"

# Subject, predicate, object: any three of them make a sentence. The weight follows the recorded languages, thinned
# for English.
_LANGUAGES: dict[str, tuple[int, list[str], list[str], list[str]]] = {
    "en": (
        40,
        ["The old wheel", "The miller", "Our sluice", "A heron", "The apprentice", "Fast water"],
        ["turns past", "listens to", "waits for", "carries", "counts", "has forgotten"],
        [
            "the weir.",
            "ninety sacks of flour.",
            "the spring flood!",
            "two stones & a gear.",
            "the night shift.",
            "rain?",
        ],
    ),
    "ja": (
        14,
        ["古い水車が", "粉屋さんは", "今日の水門は", "弟子の一人が", "朝の川は"],
        ["ゆっくりと", "もう一度", "静かに", "誰よりも早く", "楽しそうに"],
        ["回っています。", "小麦を運びます。", "雨を待っている。", "石臼を直した。", "橋の下を流れる。"],
    ),
    "ko": (
        8,
        ["오래된 물레방아가", "방앗간 주인이", "아침의 시냇물은", "수문은"],
        ["천천히", "다시 한번", "조용히", "아무도 모르게"],
        ["돌아갑니다.", "밀가루를 나릅니다.", "비를 기다립니다.", "노래를 부릅니다."],
    ),
    "es": (
        7,
        ["El molino viejo", "La molinera", "El canal", "La compuerta"],
        ["espera", "mueve", "cuenta", "acompaña"],
        ["la lluvia de otoño.", "cien sacos de harina.", "las piedras del río.", "el sueño del niño."],
    ),
    "ar": (
        7,
        ["الطاحونة القديمة", "صاحب الطاحونة", "ماء النهر", "العجلة الكبيرة"],
        ["تدور قرب", "ينتظر", "يسبق", "لا تنسى"],
        ["الجسر الحجري.", "مطر الربيع.", "أكياس القمح.", "صوت الصباح."],
    ),
    "pt": (
        4,
        ["A roda do moinho", "O moleiro", "A água"],
        ["não espera", "conhece", "leva"],
        ["a estação.", "o pão da manhã.", "as pedras."],
    ),
    "de": (
        4,
        ["Das Mühlrad", "Die Müllerin", "Der Bach"],
        ["zählt", "überholt", "weckt"],
        ["die Säcke.", "den Regen.", "das ganze Dörfchen."],
    ),
    "fr": (
        4,
        ["Le vieux moulin", "La meunière", "L’écluse"],
        ["réveille", "connaît", "n’oublie pas"],
        ["la rivière.", "les blés mûrs.", "le boulanger."],
    ),
    "th": (
        4,
        ["กังหันน้ำเก่า", "คนโม่แป้ง", "สายน้ำ"],
        ["หมุนผ่าน", "รอคอย", "ไม่เคยลืม"],
        ["สะพานหิน", "ฝนแรกของปี", "เช้าวันใหม่"],
    ),
    "hi": (
        3,
        ["पुरानी पनचक्की", "चक्की वाला", "नहर का पानी"],
        ["धीरे धीरे", "रोज़ सुबह", "बिना रुके"],
        ["घूमती है।", "गाता है।", "बहता है।"],
    ),
    "ru": (
        3,
        ["Старое колесо", "Мельник", "Вода у запруды"],
        ["ждёт", "помнит", "обгоняет"],
        ["весенний дождь.", "тёплый хлеб.", "тишину."],
    ),
    # X's own codes: only media or links, and text whose language it could not tell.
    "qme": (2, ["🌊🌊", "🍞✨", "👩🏽‍🌾", "🇯🇵🏞️"], ["➡️", "💨", "💗"], ["🌾", "🥖😀", "⛲️"]),
    "und": (2, ["hmmmm", "0 1 1 2 3", "la la"], ["..", "~", "="], ["5 8 13", "la", "brrr"]),
}
_UNSPACED = {"ja", "th"}
# Between sentences. None of them ends a line of the stream.
_JOINTS = [" ", " ", " ", " ", "\n", "\n\n", "\u2028", "\u0085", "\x00", "\t", ' "ok" ', " \\ "]
_EMOJI = ["😀", "🌊", "🍞", "👩🏽‍🌾", "⛲️", "🏞️", "💧💧"]
_TAGS = ["water", "bread", "水車", "방앗간", "Mühle", "weir"]
_TOPICS = ["Rivers", "Baking", "Old machines", "Stone bridges", "Herons", "Village life"]
_PLACES = [("Weirford", "Nowhere", "XX"), ("水車町", "架空", "XY"), ("Mühlbach", "Niemandsland", "XZ")]
_NAMES = ["Mina of the Mill", "川田 粉", "Otto Rad 🌊", "Señor Canal", "물레 씨", "Weir & Daughters", "Ñ"]

# Default fields only; fields and users; a retweet, quote or reply; the same with a partial error; a long post.
_SHAPES = {"default": 34, "users": 42, "reference": 20, "partial": 2, "long": 2}


class Author:
    """An invented account."""

    def __init__(self, rng: Random, number: int) -> None:
        self.id = str(rng.choice([rng.randrange(10**6, 10**10), rng.randrange(10**17, 19 * 10**17)]))
        self.username = f"miller_{number:04d}"
        self.name = rng.choice(_NAMES)


class Composer:
    """
    Composes invented posts, the same ones for the same generator.

    Args:
        rng: chance.
        authors: how many accounts write; the n-th writes 1/n times as often as the first (Zipf).
    """

    def __init__(self, rng: Random, authors: int) -> None:
        self._rng = rng
        self._authors = [Author(rng, number) for number in range(1, authors + 1)]
        self._weights = list(accumulate(1 / rank for rank in range(1, authors + 1)))

    def compose(self) -> tuple[dict[str, Any], str]:
        """
        Compose one post: all that X knows of it, and the JSON text of what is on the line.

        The text has `ID_SLOT` and `CREATED_SLOT` in place of the id and the time. A line of default fields hides
        author, language and entities, but the rules of a stream see them all the same.
        """
        rng = self._rng
        shape = rng.choices(list(_SHAPES), list(_SHAPES.values()))[0]
        author, other = rng.choices(self._authors, cum_weights=self._weights, k=2)
        data = self._post(author, ID_SLOT, CREATED_SLOT, long=shape == "long")
        includes: dict[str, Any] = {"users": [self._user(author)]}
        whole: dict[str, Any] = {"data": data, "includes": includes}
        if shape in {"reference", "partial"}:
            self._refer(whole, other, missing=shape == "partial")
        elif shape != "default" and rng.random() < 0.3:
            self._attach(data, includes)
        if rng.random() < 0.03:
            data["edit_history_tweet_ids"] = [self._old_id(), ID_SLOT]
        line = whole
        if shape == "default":
            line = {"data": {name: data[name] for name in ("id", "text", "edit_history_tweet_ids")}}
        text = json.dumps(self._shuffled(line), ensure_ascii=False, separators=(",", ":"))
        if rng.random() < 0.5:
            text = re.sub("[\U00010000-\U0010ffff]", _surrogates, text)
        return whole, text

    def _post(self, author: Author, post_id: str, created_at: str, *, long: bool = False) -> dict[str, Any]:
        rng = self._rng
        lang = rng.choices(list(_LANGUAGES), [entry[0] for entry in _LANGUAGES.values()])[0]
        # X takes 25,000 characters.
        size = min(25_000, int(800 * rng.paretovariate(1))) if long else rng.choice([10, 10, 30, 60, 120])
        text, entities = self._text(lang, size)
        post: dict[str, Any] = {
            "id": post_id,
            "text": text,
            "edit_history_tweet_ids": [post_id],
            "author_id": author.id,
            "created_at": created_at,
            "conversation_id": post_id,
            "lang": lang,
            "possibly_sensitive": rng.random() < 0.05,
            "reply_settings": rng.choice(["everyone", "everyone", "mentionedUsers", "following"]),
            "public_metrics": {
                name: int(rng.paretovariate(0.7)) - 1
                for name in ("retweet_count", "reply_count", "like_count", "quote_count", "impression_count")
            },
        }
        if long:
            # `text` holds the beginning of a long post only.
            post |= {"text": text[:279] + "…", "note_tweet": {"text": text, "entities": entities}}
            entities = {kind: [one for one in found if one["end"] < 280] for kind, found in entities.items()}
        if entities:
            post["entities"] = entities
        if rng.random() < 0.2:
            post["context_annotations"] = [self._annotation() for _ in range(rng.randrange(1, 6))]
        if rng.random() < 0.05:
            post[rng.choice(["geo", "attachments"])] = {}
        return post

    def _text(self, lang: str, size: int) -> tuple[str, dict[str, Any]]:
        """Build a text of at least `size` characters with its entities; their positions count characters."""
        rng = self._rng
        _, *parts = _LANGUAGES[lang]
        entities: dict[str, Any] = {}
        text = self._sentence(lang, parts) + " " if rng.random() < 0.7 else ""
        start = len(text)
        text += "millrace"
        if rng.random() < 0.3:
            text = text[:start] + "#millrace"
            entities["hashtags"] = [{"start": start, "end": len(text), "tag": "millrace"}]
        joint = " "
        while len(text) < size:
            text += joint + self._sentence(lang, parts)
            joint = rng.choice(_JOINTS)
        if rng.random() < 0.3:
            text += " " + "".join(rng.choices(_EMOJI, k=rng.randrange(1, 4)))
        if rng.random() < 0.35:
            tag = rng.choice(_TAGS)
            start = len(text) + 1
            text += f" #{tag}"
            entities.setdefault("hashtags", []).append({"start": start, "end": len(text), "tag": tag})
        if rng.random() < 0.06:
            start = len(text) + 1
            text += " $MILL"
            entities["cashtags"] = [{"start": start, "end": len(text), "tag": "MILL"}]
        if rng.random() < 0.15:
            other = rng.choice(self._authors)
            start = len(text) + 1
            text += f" @{other.username}"
            entities["mentions"] = [{"start": start, "end": len(text), "username": other.username, "id": other.id}]
        if rng.random() < 0.3:
            code = f"{rng.randrange(16**8):08x}"
            start = len(text) + 1
            text += f" https://t.example/{code}"
            entities["urls"] = [
                {
                    "start": start,
                    "end": len(text),
                    "url": f"https://t.example/{code}",
                    "expanded_url": f"https://mill.example/diary/{code}?wheel=1&sack=2",
                    "display_url": "mill.example/diary/…",
                }
            ]
        return text, entities

    def _sentence(self, lang: str, parts: list[list[str]]) -> str:
        words = [self._rng.choice(part) for part in parts]
        return ("" if lang in _UNSPACED else " ").join(words).replace("&", "&amp;")

    def _refer(self, whole: dict[str, Any], other: Author, *, missing: bool) -> None:
        """Make the post a retweet, quote or reply to another one, which is included unless it is missing."""
        rng = self._rng
        data, includes = whole["data"], whole["includes"]
        kind = rng.choices(["retweeted", "quoted", "replied_to"], [6, 2, 2])[0]
        old = self._post(other, self._old_id(), "2024-02-29T12:34:56.000Z")
        data["referenced_tweets"] = [{"type": kind, "id": old["id"]}]
        if kind == "retweeted":
            data["text"] = f"RT @{other.username}: {old['text']}"
            data["entities"] = {"mentions": [{"start": 3, "end": 15, "username": other.username, "id": other.id}]}
            data["lang"] = old["lang"]
        elif kind == "replied_to":
            data |= {"in_reply_to_user_id": other.id, "conversation_id": old["id"]}
        if missing:
            whole["errors"] = [
                {
                    "value": old["id"],
                    "detail": f"Could not find tweet with referenced_tweets.id: [{old['id']}].",
                    "title": "Not Found Error",
                    "resource_type": "tweet",
                    "parameter": "referenced_tweets.id",
                    "resource_id": old["id"],
                    "type": f"https://api.{rng.choice(['twitter', 'x'])}.com/2/problems/resource-not-found",
                }
            ]
            return
        includes["users"].append(self._user(other))
        includes["tweets"] = [old]
        if rng.random() < 0.4:
            self._attach(old, includes)
        if rng.random() < 0.2:
            # Asking for the edit history expands the post itself once more.
            includes["tweets"].insert(0, data)

    def _attach(self, post: dict[str, Any], includes: dict[str, Any]) -> None:
        """Give a post a photo or a video, or a place."""
        rng = self._rng
        if rng.random() < 0.25:
            name, country, code = rng.choice(_PLACES)
            place = f"{rng.randrange(16**16):016x}"
            post["geo"] = {"place_id": place}
            geo = {"type": "Feature", "bbox": [-0.25, 51.5, 0.25, 51.75], "properties": {}}
            full_name = f"{name}, {country}"
            entry = {"id": place, "name": name, "full_name": full_name, "country": country, "country_code": code}
            includes["places"] = [entry | {"place_type": "city", "geo": geo}]
            return
        video = rng.random() < 0.4
        key = f"{13 if video else 3}_{self._old_id()}"
        url = f"https://img.example/{key}"
        medium: dict[str, Any] = {"media_key": key, "height": 720, "width": 1280}
        if video:
            rates = (256_000, 832_000, 2_176_000)
            variants = [{"bit_rate": rate, "content_type": "video/mp4", "url": f"{url}/{rate}.mp4"} for rate in rates]
            medium |= {"type": "video", "preview_image_url": f"{url}.jpg", "duration_ms": 23456, "variants": variants}
        else:
            medium |= {"type": "photo", "url": f"{url}.jpg", "alt_text": "A wheel, and water 🌊"}
        post["attachments"] = {"media_keys": [key]}
        includes["media"] = [medium]

    def _user(self, author: Author) -> dict[str, Any]:
        rng = self._rng
        return {
            "id": author.id,
            "username": author.username,
            "name": author.name,
            "created_at": "2011-11-11T11:11:11.000Z",
            "description": " ".join(rng.choice(part) for part in _LANGUAGES[rng.choice(["en", "ja", "ko"])][1:]),
            "location": rng.choice(["", "by the weir", "川のほとり"]),
            "verified": False,
            "protected": False,
            "url": "",
            "profile_image_url": f"https://img.example/{author.username}.png",
            "public_metrics": {
                name: int(rng.paretovariate(0.6)) - 1
                for name in ("followers_count", "following_count", "tweet_count", "listed_count")
            },
        }

    def _annotation(self) -> dict[str, Any]:
        topic = self._rng.choice(_TOPICS)
        domain = {"id": "46", "name": "Mill topic", "description": "Invented topics of life at a water mill"}
        return {"domain": domain, "entity": {"id": str(900_000 + len(topic)), "name": topic}}

    def _old_id(self) -> str:
        return str(self._rng.randrange(15 * 10**17, 19 * 10**17))

    def _shuffled(self, value: Any) -> Any:
        """Put the keys of all objects into an order of chance."""
        if isinstance(value, dict):
            names = list(value)
            self._rng.shuffle(names)
            return {name: self._shuffled(value[name]) for name in names}
        return [self._shuffled(item) for item in value] if isinstance(value, list) else value


def _surrogates(match: re.Match[str]) -> str:
    """Write a character beyond the basic plane as X's recorded answers do."""
    code = ord(match[0]) - 0x10000
    return f"\\u{0xD800 + (code >> 10):04X}\\u{0xDC00 + (code & 0x3FF):04X}"
