"""The reference's model and recipe (parameter-golf pull request 543): with its bugs fixed (`record`) and as
it really ran (`reference`).
"""

from schemas.averaging_settings import AveragingSettings
from schemas.check_size import SIZE_LIMIT_BYTES
from schemas.compute_settings import ComputeSettings
from schemas.evaluate import EvaluateSpec
from schemas.merge import MergeSpec
from schemas.model_settings import ModelSettings
from schemas.pipeline import PipelineSpec
from schemas.publish import PublishOptions
from schemas.qat_settings import QatSettings
from schemas.quantizer_settings import CalibrationSettings, Ecsq, FitSettings, Reference
from schemas.scoring_settings import ScoringSettings
from schemas.tensor_formats import FormatRule
from schemas.tokenize_corpus import FirstDocuments, ShardsCorpus, TokenizerSpec, TokenizeSpec
from schemas.train_settings import (
    DataSettings,
    OptimizerSettings,
    ScheduleSettings,
    SnapshotSettings,
    TrainSettings,
)

CODED_RULES = (FormatRule("tok_emb.weight", "int8"), FormatRule("*.weight", "int8"), FormatRule("*", "fp32"))
EIGHT_GPUS = ComputeSettings(device="cuda", num_processes=8, threads_per_process=8)


def record() -> PipelineSpec:
    """25,224,282 parameters, 600 s on eight GPUs; schedules follow progress, the steps of the
    quantization are fitted to the limit.
    """
    scoring = ScoringSettings(sequence_length=2048, stride=64, batch_tokens=131_072)
    return PipelineSpec(
        tokenize=TokenizeSpec(
            corpus=ShardsCorpus(
                folder="data/datasets/fineweb10B_sp1024",
                tokenizer_model="data/tokenizers/fineweb_1024_bpe.model",
            ),
            tokenizer=TokenizerSpec(vocab_size=1024),
            split=FirstDocuments(num_val_documents=50_000),
            compressor_baselines=False,
        ),
        train=TrainSettings(
            model=ModelSettings(),
            optimizer=OptimizerSettings(muon_momentum_warmup_fraction=0.25),
            schedule=ScheduleSettings(
                max_steps=20_000,
                max_seconds=600.0,
                reserve_seconds=30.0,
                warmdown_fraction=0.5,
                compile_warmup_steps=3,
            ),
            data=DataSettings(batch_tokens=786_432, sequence_length=2048, micro_batch_sequences=48),
            snapshots=SnapshotSettings(start_lr_scale=0.2, every_fraction=None, every_steps=50),
            # ecsq's steps come from calibration after training: there is no grid that training could round
            # to.
            qat=QatSettings(start_lr_scale=0.0, rules=CODED_RULES),
            compute=EIGHT_GPUS.derive(compile=True, fused_kernels=True),
        ),
        merge=MergeSpec(averaging=AveragingSettings(start_lr_scale=0.2), scoring=scoring, compute=EIGHT_GPUS),
        quantize=Ecsq(
            rules=CODED_RULES,
            # A sixteenth of this text cost the preset `winner` .020 bpb (docs/log.md).
            calibration=CalibrationSettings(
                num_sequences=512,
                sequence_length=2048,
                batch_sequences=8,
                device="cuda",
                precision="bfloat16",
                threads=8,
            ),
            fit=FitSettings(limit_bytes=SIZE_LIMIT_BYTES),
        ),
        evaluate=EvaluateSpec(scoring=scoring, compute=EIGHT_GPUS),
        publish=PublishOptions(title="Fairway: record preset"),
    )


def reference() -> PipelineSpec:
    """The reference as it really ran, as far as settings go: idle scales, an untrained value embedding,
    no AdamW decay, step counts.
    """
    base = record()
    train = base.train.derive(
        model=base.train.model.derive(value_embedding_scale_every_layer=True, smear_stops_at_bos=False),
        optimizer=base.train.optimizer.derive(
            adam_weight_decay=0.0,
            muon_momentum_warmup_fraction=None,
            muon_momentum_warmup_steps=1500,
            frozen=("value_embedding.table.weight", "value_embedding.proj.weight"),
        ),
        # Its quantizer reads no training text.
        schedule=base.train.schedule.derive(warmdown_fraction=None, warmdown_steps=3000, reserve_seconds=0.0),
        data=base.train.data.derive(order="sequential"),
        qat=QatSettings(start_lr_scale=0.1),
    )
    return base.derive(
        train=train,
        quantize=Reference(),
        publish=PublishOptions(title="Fairway: reference preset"),
    )
