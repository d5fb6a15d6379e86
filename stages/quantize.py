"""Quantize the merged model and pack it into the blob, with an account of every tensor.

    python -m stages quantize --spec spec.json --input merged=…/record.json --input tokenized=…/record.json

MergedModel → PackedModel and model.fwz. Of the text only shards of the training split are read, and those
only by methods that calibrate. Plain rounding with the same rules and level is always made too: the record
says what the chosen method gains over it, or that it gains nothing.
"""

import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from schemas.errors import SpecError, StageError
from schemas.merge import MergedModel
from schemas.package import BLOB_NAME
from schemas.quantize import FitTry, PackedModel, QuantizeSpec, changed_to, quantize_compute
from schemas.quantizer_settings import CalibratedSettings, FittingSettings, QuantizerSettings, RoundToNearest
from schemas.tokenize_corpus import TokenizedCorpus
from stages.core.blob.packing import compress_frame, pack, payload_of, seal, serialize
from stages.core.calibrated.whole_model import quantize_state
from stages.core.calibrated.with_text import CalibratedModel
from stages.core.quantizers.by_rules import FormatRuleError
from stages.core.quantizers.quantized import QuantizedModel, QuantizedTensor
from stages.processes.cores import usable_cores
from stages.processes.launch import launch_module
from stages.processes.threads import threads_of
from stages.quantizing.job import QuantizingJob, QuantizingOutcome
from stages.quantizing.tensor_report import tensor_report
from stages.quantizing.worker import read_calibrated
from stages.store.workspace import Workspace

log = logging.getLogger(__name__)


def quantize(
    spec: QuantizeSpec, merged: MergedModel, tokenized: TokenizedCorpus, work: Workspace
) -> PackedModel:
    """The blob of `merged`, and a row for each tensor in it.

    `tokenized` gives the calibration text of a quantizer that reads one.

    Raises SpecError when the rules give a tensor a format that it cannot have, when there is too little text
    and when a limit cannot be met, StageError for weights that no format holds.
    """
    with threads_of(quantize_compute(spec).threads_per_process):
        return _quantized_and_packed(spec, merged, tokenized, work)


def _quantized_and_packed(
    spec: QuantizeSpec, merged: MergedModel, tokenized: TokenizedCorpus, work: Workspace
) -> PackedModel:
    state = load_file(work.read(merged.weights))
    metadata = {"model": merged.model.as_metadata(), "method": spec.method}
    # First, because it also finds what cannot be quantized at all.
    plain = _quantize(state, changed_to(RoundToNearest, spec))
    calibrated, chosen = None, plain
    if isinstance(spec, CalibratedSettings):
        calibrated = _quantize_with_text(spec, merged, tokenized, work, metadata)
        chosen = calibrated.model
    elif not isinstance(spec, RoundToNearest):
        chosen = _quantize(state, spec)
    divergences = dict(calibrated.divergences) if calibrated else {}
    header, payload = serialize(chosen, metadata)

    # Each compression is single-threaded, so its bytes do not depend on the machine; zstd lets other threads
    # run meanwhile.
    with ThreadPoolExecutor(max_workers=min(4, usable_cores())) as pool:
        blob_job = pool.submit(seal, header, payload, spec.zstd_level)
        plain_job = (
            blob_job
            if plain is chosen
            else pool.submit(pack, plain, metadata | {"method": plain.method}, spec.zstd_level)
        )
        alone = {tensor.name: pool.submit(_size_alone, tensor, spec.zstd_level) for tensor in chosen.tensors}
        jobs: set[Future[Any]] = {blob_job, plain_job, *alone.values()}
        for done, _ in enumerate(as_completed(jobs), start=1):
            work.report_progress(done, len(jobs), "compressed parts")
    blob = blob_job.result()
    path = work.out_dir / BLOB_NAME
    path.write_bytes(blob)
    packed = PackedModel(
        blob=work.ref(path),
        method=chosen.method,
        num_parameters=sum(tensor.values.numel() for tensor in chosen.tensors),
        stored_bytes=len(header) + len(payload),
        header_bytes=len(header),
        blob_bytes=len(blob),
        blob_bytes_round_to_nearest=len(plain_job.result()),
        divergence_nats=calibrated.divergence_nats if calibrated else None,
        text_seconds=calibrated.text_seconds if calibrated else None,
        step_multiplier=calibrated.multiplier if calibrated else None,
        fit_tries=tuple(FitTry(step_multiplier=step, package_bytes=size) for step, size in calibrated.tries)
        if calibrated
        else (),
        tensors=tuple(
            tensor_report(
                state[tensor.name], tensor, rounded, alone[tensor.name].result(), divergences.get(tensor.name)
            )
            for tensor, rounded in zip(chosen.tensors, plain.tensors, strict=True)
        ),
    )
    _log_gain(packed)
    return packed


def _quantize_with_text(
    spec: CalibratedSettings,
    merged: MergedModel,
    tokenized: TokenizedCorpus,
    work: Workspace,
    metadata: dict[str, Any],
) -> CalibratedModel:
    """Quantize in a separate process, whose threads wait as the machine's cores allow, and which can be
    cancelled.
    """
    if isinstance(spec, FittingSettings) and spec.fit.lacks_code:
        raise SpecError(
            "quantize.fit.code_bytes: without the pipeline, give the bytes of the packaged script beside the "
            "blob (0: fit the blob alone)"
        )
    try:
        spec.calibration.count_in(tokenized.train.num_tokens)
    except ValueError as error:
        raise SpecError(f"quantize.{error}") from error
    job = QuantizingJob(
        model=merged.model,
        weights=work.read(merged.weights),
        shards=tuple(work.read(ref) for ref in tokenized.train_shards),
        spec=spec,
        metadata=metadata,
    )
    outcome = launch_module(
        "stages.quantizing.worker",
        job,
        QuantizingOutcome,
        work.out_dir,
        quantize_compute(spec),
        work.progress,
        work.runtime.stage_timeout_seconds,
    )
    return read_calibrated(spec.method, work.out_dir, outcome)


def _quantize(state: dict[str, Tensor], spec: QuantizerSettings) -> QuantizedModel:
    try:
        return quantize_state(state, spec)
    except FormatRuleError as error:
        raise SpecError(f"quantize.rules: {error}") from error
    except ValueError as error:
        raise StageError(f"the merged model cannot be quantized: {error}") from error


def _size_alone(tensor: QuantizedTensor, level: int) -> int:
    return len(compress_frame(payload_of([tensor]), level))


def _log_gain(packed: PackedModel) -> None:
    log.info(
        "quantized %s parameters by %s into %s bytes",
        f"{packed.num_parameters:,}",
        packed.method,
        f"{packed.blob_bytes:,}",
    )
    if packed.is_coded:
        log.info("%.2f bits a parameter, everything included", packed.bits_per_parameter)
    if packed.is_coded or packed.is_plain:
        return
    error_change = math.sqrt(1 - packed.squared_error_saved) - 1
    byte_change = packed.blob_bytes / packed.blob_bytes_round_to_nearest - 1
    # Equal errors are equal codes: a byte's difference is then the method's name in the header.
    in_vain = error_change == 0 or (error_change > 0 and byte_change >= 0)
    verdict = "no gain" if in_vain else "mixed" if error_change > 0 or byte_change > 0 else "a gain"
    log.info(
        "against plain rounding: error %+.2f %%, bytes %+.2f %%: %s",
        100 * error_change,
        100 * byte_change,
        verdict,
    )
