"""Rules on seconds: training and evaluation, and the track that decides whether they count."""

from typing import Literal

from schemas.submission import INFO_NAME, LIMIT_SECONDS, README_NAME
from stages.submission.figures import evaluation_seconds, training_seconds
from stages.submission.folder import Folder, Verdict, declared_scores, is_another_run, results_of
from stages.submission.logs import Log

CAP_GRACE_SECONDS = 1.0


def training_in_time(folder: Folder) -> Verdict:
    """Training takes at most 600 s on the record track; the step that crosses the cap may finish."""
    claims = [(f"{INFO_NAME} {key}", seconds, 0.0, None) for key, seconds in training_seconds(folder.info)]
    for seed, result in results_of(folder).items():
        if isinstance(result, dict):
            claims += [
                (f"{INFO_NAME} seed {seed} {key}", seconds, 0.0, None)
                for key, seconds in training_seconds(result)
            ]
    logs: list[tuple[str, float, float, Log | None]] = [
        (log.name, *log.training, log) for log in folder.logs if log.training
    ]
    if not claims and not logs:
        return "unknown", f"neither {INFO_NAME} nor a log says how long training took"
    where, seconds, _, source = max([*claims, *logs], key=lambda item: item[1] - item[2])
    over = [item for item in (*claims, *logs) if item[1] - item[2] > LIMIT_SECONDS + CAP_GRACE_SECONDS]
    if not over:
        note = (
            ": the step that crosses the cap was finished, as in the published baseline"
            if seconds > LIMIT_SECONDS
            else ""
        )
        return "pass", f"{seconds:,.3f} s ({where}){note}" if note else f"{seconds:,.1f} s ({where})"
    excess = f"{seconds:,.1f} s ({where}), {seconds - LIMIT_SECONDS:,.1f} s over"
    track, source_of_track = track_of(folder)
    if track == "non-record":
        limit = f"the {LIMIT_SECONDS:.0f} s limit is for the record track only ({source_of_track})"
        return "pass", f"{seconds:,.1f} s ({where}); {limit}"
    if track == "both" or _readme_says_non_record(folder):
        return (
            "unknown",
            f"{excess}; {source_of_track or README_NAME} may mean the non-record track, which has no limit",
        )
    if all(log is not None and is_another_run(log, folder) for _, _, _, log in over):
        return "unknown", f"{excess}; the log seems to be of another run"
    measured = max((log[1] for log in logs), default=0.0)
    if (
        source is None
        and "wallclock" in where
        and 0.9 * LIMIT_SECONDS <= measured <= LIMIT_SECONDS + CAP_GRACE_SECONDS
    ):
        return "unknown", f"{excess}; the logs say {measured:,.1f} s of training"
    return "fail", excess


def evaluation_in_time(folder: Folder) -> Verdict:
    """The evaluation that gives the score takes at most 600 s."""
    claims = [(f"{INFO_NAME} {key}", seconds, True) for key, seconds in evaluation_seconds(folder.info)]
    for seed, result in results_of(folder).items():
        if isinstance(result, dict):
            claims += [
                (f"{INFO_NAME} seed {seed} {key}", seconds, True)
                for key, seconds in evaluation_seconds(result)
            ]
    claims += [
        (log.name, *chosen)
        for log in folder.logs
        if (chosen := _scoring_seconds(log, folder)) and not is_another_run(log, folder)
    ]
    if not claims:
        return "unknown", f"neither {INFO_NAME} nor a log says how long evaluation took"
    where, seconds, certain = max(claims, key=lambda item: (item[1] > LIMIT_SECONDS and item[2], item[1]))
    if seconds <= LIMIT_SECONDS:
        return "pass", f"{seconds:,.1f} s ({where})"
    excess = f"{seconds:,.1f} s ({where}), {seconds - LIMIT_SECONDS:,.1f} s over"
    if not certain:
        return "unknown", f"{excess}; which evaluation gives the score is not stated"
    if track_of(folder)[0] in ("non-record", "both") or _readme_says_non_record(folder):
        return "unknown", f"{excess}; the limit is for eight H100, and this is not of the record track"
    if any(log.processes not in (None, 8) for log in folder.logs):
        return "unknown", f"{excess}; the limit is for eight H100, and a log says another number of processes"
    return "fail", excess


def track_of(folder: Folder) -> tuple[Literal["record", "non-record", "both", ""], str]:
    """The track of a folder and its source: submission.json, the path, or the beginning of the README.

    The track is `both` if the sources contradict each other, and "" if none names one.
    """
    tracks: dict[str, str] = {}
    for key in ("track", "submission_kind", "submission_type", "category"):
        if isinstance(value := folder.info.get(key), str) and (track := _track_in(value)):
            tracks.setdefault(track, f"{INFO_NAME} {key} = {value[:60]}")
    if folder.info.get("non_record") is True:
        tracks.setdefault("non-record", f"{INFO_NAME} non_record")
    for part in folder.path.absolute().parts:
        track = _track_in(part)
        if track and (part.lower().startswith("track") or track == "non-record"):
            tracks.setdefault(track, f"the folder {part}")
    if len(tracks) == 1:
        track, where = next(iter(tracks.items()))
        return ("record" if track == "record" else "non-record"), where
    return ("both", " and ".join(tracks.values())) if tracks else ("", "")


def _track_in(text: str) -> str:
    plain = "".join(char for char in text.lower() if char.isalnum())
    if "nonrecord" in plain or "unlimited" in plain:
        return "non-record"
    return "record" if "10min" in plain or plain in ("record", "trackrecord") else ""


def _readme_says_non_record(folder: Folder) -> bool:
    return _track_in(folder.readme[:4000]) == "non-record"


def _scoring_seconds(log: Log, folder: Folder) -> tuple[float, bool] | None:
    """Seconds of the evaluation that gives the declared score, and whether that attribution is certain."""
    if not log.evaluations:
        return None
    wanted = declared_scores(folder, log)
    scoring = [
        evaluation.seconds
        for evaluation in log.evaluations
        if evaluation.score and any(evaluation.score.agrees(want) for want in wanted)
    ]
    if scoring:
        return max(scoring), True
    if whole := [evaluation.seconds for evaluation in log.evaluations if evaluation.whole]:
        return whole[-1], True
    longest = max(evaluation.seconds for evaluation in log.evaluations)
    return longest, len(log.evaluations) == 1
