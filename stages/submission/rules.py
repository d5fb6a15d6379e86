"""The published rules, applied to any submission folder of the official form (`fairway check FOLDER`).

Nothing of the folder is executed. Each rule gives pass, fail or unknown, and a reason. Sources: the
repository's README, sections FAQ and Submission Process.
"""

from collections.abc import Callable
from pathlib import Path

from schemas.check_size import SIZE_LIMIT_BYTES
from schemas.package import BLOB_NAME, SCRIPT_NAME
from schemas.printable import one_line
from schemas.submission import INFO_NAME, README_NAME, RuleResult
from stages.core.blob.packing import BlobError, unpack
from stages.submission.claim_rules import info_valid, readme_agrees, seeds_agree
from stages.submission.folder import Folder, Verdict, read_folder
from stages.submission.size_rules import size_as_declared, size_within_limit
from stages.submission.time_rules import evaluation_in_time, training_in_time
from stages.submission.untrusted import UnreadableError, read_bytes

REASON_CHARACTERS = 900


def check_folder(path: Path) -> list[RuleResult]:
    """Apply every rule to the folder. Raises SpecError if it is not a readable folder."""
    folder, results = read_folder(path), []
    for name, rule in RULES.items():
        verdict, reason = rule(folder)
        if (
            verdict == "pass"
            and folder.left_out
            and rule in (size_within_limit, training_in_time, evaluation_in_time)
        ):
            verdict, reason = "unknown", f"{folder.left_out}; the rest says: {reason}"
        results.append(RuleResult(rule=name, verdict=verdict, reason=one_line(reason)[:REASON_CHARACTERS]))
    return results


def files_present(folder: Folder) -> Verdict:
    """README.md, submission.json, a train log and train_gpt.py exist and are plain files."""
    if "files" in folder.errors:
        return "fail", folder.errors["files"]
    missing = [name for name in (README_NAME, INFO_NAME, SCRIPT_NAME) if not folder.sizes.get(name)]
    has_log = any(not log.is_empty for log in folder.logs)
    perhaps = [name for name in folder.sizes if "log" in name.lower() and folder.sizes[name]]
    if not has_log and not perhaps:
        missing.append("a train log (*.log or *.txt)")
    if missing:
        return "fail", f"missing or empty: {', '.join(missing)}"
    if folder.odd:
        return "fail", f"links or special files: {', '.join(folder.odd[:5])}"
    if not has_log:
        return "unknown", f"no *.log or *.txt; {perhaps[0]} may be the train log"
    return "pass", f"{len(folder.sizes)} files, {len(folder.logs)} of them logs"


def script_compiles(folder: Folder) -> Verdict:
    """train_gpt.py is Python. It is parsed, not run."""
    program = folder.program
    if program.parsed:
        return "fail", program.parsed
    read = f"unpacked {program.layers} times, " if program.layers else ""
    read += f"with {', '.join(program.modules[:5])}, " if program.modules else ""
    if program.newer:
        return "unknown", f"it needs a newer Python than this one: {program.newer}; {read}read, not run"
    others = [
        name for name in folder.sizes if name.endswith(".py") and name not in (SCRIPT_NAME, *program.modules)
    ]
    left_out = f"; not imported: {', '.join(others[:5])}" if others else ""
    return "pass", f"Python, {read}read, not run{left_out}"


def no_network(folder: Folder) -> Verdict:
    """The program fetches nothing: it imports no network library and starts no download."""
    program = folder.program
    return _by_code(
        folder, program.network, program.network_possible, "no network library and no download in its text"
    )


def no_training_data(folder: Folder) -> Verdict:
    """Evaluation reads no training data: no function that evaluates reaches it."""
    program = folder.program
    if (
        not program.parsed
        and not program.evaluation
        and (program.training_named or program.unseen or not program.calls)
    ):
        return "unknown", "no function that evaluates was found by its name"
    reason = (
        f"{', '.join(program.evaluation[:4])} lead to no training data"
        if program.evaluation
        else "its text names no training data"
    )
    return _by_code(folder, program.training_data, program.training_possible, reason)


def _by_code(folder: Folder, against: list[str], possible: list[str], reason: str) -> Verdict:
    if folder.program.parsed:
        return "unknown", f"the program cannot be read: {folder.program.parsed}"
    if against:
        return "fail", "; ".join(against[:5])
    if possible:
        return "unknown", f"perhaps: {'; '.join(possible[:3])}"
    if folder.program.unseen:
        return "unknown", f"it runs code that its text does not show: {'; '.join(folder.program.unseen[:3])}"
    return "pass", reason


def blob_sound(folder: Folder) -> Verdict:
    """A blob of our format is whole, and holds only finite numbers."""
    if BLOB_NAME not in folder.sizes:
        return "unknown", f"there is no {BLOB_NAME}: another format, or no model in the folder"
    try:
        tensors, _ = unpack(read_bytes(folder.path / BLOB_NAME, SIZE_LIMIT_BYTES))
    except (BlobError, UnreadableError) as error:
        return "fail", str(error)[:300]
    return (
        "pass",
        f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} parameters",
    )


RULES: dict[str, Callable[[Folder], Verdict]] = {
    "files present": files_present,
    "submission.json valid": info_valid,
    "train_gpt.py is Python": script_compiles,
    "bytes as shipped": size_within_limit,
    "bytes as declared": size_as_declared,
    "training time": training_in_time,
    "evaluation time": evaluation_in_time,
    "no network": no_network,
    "no training data at evaluation": no_training_data,
    "seeds": seeds_agree,
    "README's figures": readme_agrees,
    "model.fwz is sound": blob_sound,
}
