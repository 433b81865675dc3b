"""Dice: how well segmenters find held-out tumours, as a table and as a chart."""

from medsynth_common.labels import Region
from medsynth_server.report.figures import DiceRow, Look, dice
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.scores import ScoreRow, score_rows
from medsynth_server.report.section import Section


def accuracy(folder: RunFolder) -> Section:
    """Compare the segmenters of the run."""
    title = "How well tumours are found"
    rows = score_rows(folder)
    if not rows:
        return Section(name="accuracy", title=title, missing="No segmenter has been evaluated yet.")
    return Section(
        name="accuracy",
        title=title,
        facts={
            "regions": [region.value for region in Region],
            "rows": rows,
            "chart": dice([_drawn(row) for row in rows]),
            "by_site": _by_site(rows),
        },
    )


def _drawn(row: ScoreRow) -> DiceRow:
    look = Look(word=row.look.word, colour=row.look.colour, marker=row.look.marker)
    scores = {
        region: None if score is None else (score.mean, score.sd)
        for region, score in row.scores.items()
    }
    return DiceRow(name=row.name, look=look, scores=scores)


def _by_site(rows: list[ScoreRow]) -> dict[str, list[float | None]]:
    """Give each site its whole-tumour Dice, one a row of the table."""
    whole = [row.scores[Region.WHOLE] for row in rows]
    sites = dict.fromkeys(site for score in whole if score for site in score.per_site)
    return {
        site: [score.per_site.get(site) if score else None for score in whole] for site in sites
    }
