"""Presets for a machine without GPU, on the embedded corpus: `demo` learns visibly in minutes, `smoke`
runs in seconds.
"""

from schemas.audit import AuditOptions
from schemas.averaging_settings import AveragingSettings
from schemas.compute_settings import ComputeSettings
from schemas.evaluate import EvaluateSpec
from schemas.merge import MergeSpec
from schemas.model_settings import ModelSettings
from schemas.pipeline import PipelineSpec
from schemas.publish import PublishOptions
from schemas.qat_settings import QatSettings
from schemas.quantizer_settings import GptqLite
from schemas.scoring_settings import ScoringSettings
from schemas.tensor_formats import FormatRule
from schemas.tokenize_corpus import HashFraction, SotuCorpus, TokenizerSpec, TokenizeSpec
from schemas.train_settings import (
    DataSettings,
    OptimizerSettings,
    ScheduleSettings,
    SnapshotSettings,
    TrainSettings,
)

TWO_CORES = ComputeSettings(device="cpu", num_processes=1, threads_per_process=2)

DEMO_RULES = (
    FormatRule("tok_emb.weight", "fp16"),
    FormatRule("blocks.0.*.weight", "int8"),
    FormatRule("blocks.3.*.weight", "int8"),
    FormatRule("*.weight", "int6"),
    FormatRule("*", "fp32"),
)


def demo() -> PipelineSpec:
    """Every technique on, a small model, a minute or two of training on two cores."""
    scoring = ScoringSettings(sequence_length=256, stride=64, batch_tokens=16_384)
    return PipelineSpec(
        tokenize=TokenizeSpec(
            corpus=SotuCorpus(),
            tokenizer=TokenizerSpec(vocab_size=1024),
            split=HashFraction(val_fraction=0.04),
        ),
        train=TrainSettings(
            model=ModelSettings(
                num_layers=4,
                model_dim=160,
                num_heads=2,
                num_kv_heads=1,
                mlp_hidden=512,
                rope_dims=16,
                xsa_layers=4,
                value_embedding_dim=48,
                value_embedding_layers=(2, 3),
            ),
            # A short run: momentum with the horizon of a run of thousands of steps would average over a fifth
            # of it (docs/log.md).
            optimizer=OptimizerSettings(muon_lr=0.05, muon_momentum=0.9, muon_momentum_start=0.85),
            # A learning rate that falls to 0 leaves a mean of steps nothing to gain; one that ends at a tenth
            # does not (docs/log.md).
            schedule=ScheduleSettings(max_steps=440, warmdown_fraction=0.8, min_lr_scale=0.1),
            # A short context first wins .0057 bpb over three seeds (docs/log.md).
            data=DataSettings(
                batch_tokens=2_048,
                sequence_length=256,
                micro_batch_sequences=8,
                context_lengths=(64, 128),
                context_ends=(0.05, 0.2),
            ),
            snapshots=SnapshotSettings(start_lr_scale=0.0, ema_horizon=0.06),
            qat=QatSettings(start_lr_scale=0.2, rules=DEMO_RULES),
            compute=TWO_CORES,
        ),
        merge=MergeSpec(
            averaging=AveragingSettings(method="ema_of_steps"), scoring=scoring, compute=TWO_CORES
        ),
        quantize=GptqLite(rules=DEMO_RULES),
        evaluate=EvaluateSpec(scoring=scoring, compute=TWO_CORES),
        publish=PublishOptions(title="Fairway: demo preset"),
    )


def smoke() -> PipelineSpec:
    """`demo` cut down to seconds, with everything still on."""
    base = demo()
    scoring = ScoringSettings(sequence_length=64, stride=32, batch_tokens=4_096)
    rules = (
        FormatRule("tok_emb.weight", "fp16"),
        FormatRule("blocks.0.*.weight", "int8"),
        FormatRule("*.weight", "int6"),
        FormatRule("*", "fp32"),
    )
    train = base.train.derive(
        model=base.train.model.derive(
            vocab_size=320,
            num_layers=3,
            model_dim=32,
            num_heads=2,
            num_kv_heads=1,
            mlp_hidden=64,
            rope_dims=8,
            xsa_layers=1,
            value_embedding_dim=8,
            value_embedding_layers=(2,),
        ),
        optimizer=OptimizerSettings(),
        schedule=ScheduleSettings(max_steps=40, warmdown_fraction=0.6),
        data=DataSettings(batch_tokens=1_024, sequence_length=64, micro_batch_sequences=8),
        snapshots=SnapshotSettings(start_lr_scale=0.2, every_steps=1),
        qat=base.train.qat.derive(rules=rules),
    )
    return base.derive(
        tokenize=base.tokenize.derive(
            corpus=SotuCorpus(max_documents=6),
            tokenizer=TokenizerSpec(vocab_size=320),
            split=HashFraction(val_fraction=0.3),
        ),
        train=train,
        merge=base.merge.derive(averaging=AveragingSettings(start_lr_scale=0.2), scoring=scoring),
        quantize=base.quantize.derive(rules=rules),
        evaluate=base.evaluate.derive(scoring=scoring),
        audit=AuditOptions(gap_tokens=2_048),
        publish=PublishOptions(title="Fairway: smoke preset"),
    )
