"""Writes the dashboards, whose panels are in panels.py: `make dashboards`. A test keeps the files equal to this."""

from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as values
from grafana_foundation_sdk.models import dashboard as model

from deploy.grafana.panels import OVERVIEW, SHARDS, Board, Panel

DIRECTORY = Path(__file__).parent / "dashboards"
SELECTION = 'job="$job", instance=~"$instance"'


def _datasource() -> model.DataSourceRef:
    return model.DataSourceRef(type_val="prometheus", uid="$datasource")


def _thresholds(bad_from: float | None) -> dashboard.ThresholdsConfig:
    steps = [model.Threshold(value=None, color="green")]
    if bad_from is not None:
        steps.append(model.Threshold(value=bad_from, color="red"))
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _figure(panel: Panel) -> stat.Panel:
    built = stat.Panel().color_mode(values.BigValueColorMode.BACKGROUND).graph_mode(values.BigValueGraphMode.AREA)
    built.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if panel.texts:
        options = {
            value: model.ValueMappingResult(text=text, color="red" if value == "0" else "green")
            for value, text in panel.texts.items()
        }
        built.mappings([model.ValueMap(options=options)])
        built.graph_mode(values.BigValueGraphMode.NONE)
    return built.thresholds(_thresholds(panel.bad_from))


def _lines(panel: Panel) -> timeseries.Panel:
    built = timeseries.Panel().line_width(1).fill_opacity(30 if panel.kind == "stacked" else 10).min(0)
    built.show_points(values.VisibilityMode.NEVER)
    built.legend(
        common.VizLegendOptions()
        .display_mode(values.LegendDisplayMode.LIST)
        .placement(values.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    built.tooltip(common.VizTooltipOptions().mode(values.TooltipDisplayMode.MULTI).sort(values.SortOrder.DESCENDING))
    if panel.kind == "stacked":
        built.stacking(common.StackingConfig().mode(values.StackingMode.NORMAL))
    if panel.bad_from is not None:
        built.thresholds_style(common.GraphThresholdsStyleConfig().mode(values.GraphThresholdsStyleMode.DASHED))
    return built.thresholds(_thresholds(panel.bad_from))


def _build(panel: Panel, number: int) -> stat.Panel | timeseries.Panel | heatmap.Panel:
    built: stat.Panel | timeseries.Panel | heatmap.Panel
    if panel.kind == "figure":
        built = _figure(panel)
    elif panel.kind == "heat":
        built = heatmap.Panel().calculate(False)
    else:
        built = _lines(panel)
    built.id(number).title(panel.title).description(panel.description).unit(panel.unit).datasource(_datasource())
    built.span(panel.width).height(4 if panel.kind == "figure" else 8)
    for index, (expression, legend) in enumerate(panel.queries.items()):
        query = prometheus.Dataquery().expr(expression.replace("$s", SELECTION)).legend_format(legend or "__auto")
        built.with_target(query.ref_id("ABCDEFGH"[index]))
    return built


def build(board: Board) -> model.Dashboard:
    """Return a dashboard as Grafana takes it."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["millrace"])
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .link(dashboard.DashboardLink("Millrace").type(model.DashboardLinkType.DASHBOARDS).tags(["millrace"]))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "label_values(millrace_build_info, job)", many=False))
        .with_variable(_variable("instance", 'label_values(millrace_build_info{job="$job"}, instance)', many=True))
    )
    number = 0
    for title, panels in board.rows.items():
        number += 1
        built.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            number += 1
            built.with_panel(_build(panel, number))
    return built.build()


def _variable(name: str, query: str, *, many: bool) -> dashboard.QueryVariable:
    variable = (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(_datasource())
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(many)
        .include_all(many)
    )
    if many:
        variable.all_value(".*").current(model.VariableOption(text="All", value="$__all", selected=True))
    return variable


def files() -> dict[str, str]:
    """Return the files by name: what they should hold."""
    encoder = JSONEncoder(sort_keys=True, indent=1)
    return {
        f"{board.uid.removeprefix('millrace-')}.json": f"{encoder.encode(build(board))}\n"
        for board in (OVERVIEW, SHARDS)
    }


if __name__ == "__main__":
    for name, text in files().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")
