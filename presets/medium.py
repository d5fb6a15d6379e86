"""`medium`: the reference's recipe at 3.7 million parameters, for measurements that `demo` is too small
for.
"""

from presets.demo import demo
from schemas.averaging_settings import AveragingSettings
from schemas.model_settings import ModelSettings
from schemas.pipeline import PipelineSpec
from schemas.publish import PublishOptions
from schemas.tensor_formats import FormatRule
from schemas.train_settings import DataSettings, OptimizerSettings, ScheduleSettings, SnapshotSettings


def medium() -> PipelineSpec:
    """3.7 M parameters, 1.6 M tokens, three minutes of training on two idle cores; its weights have seen
    no grid, so that quantizers can be compared on them.
    """
    base = demo()
    rules = (
        FormatRule("tok_emb.weight", "int8"),
        FormatRule("*.weight", "int6"),
        FormatRule("*", "fp32"),
    )
    train = base.train.derive(
        model=ModelSettings(
            num_layers=6,
            model_dim=256,
            num_heads=4,
            num_kv_heads=2,
            mlp_hidden=704,
            rope_dims=16,
            xsa_layers=2,
            value_embedding_dim=64,
            value_embedding_layers=(4, 5),
        ),
        optimizer=OptimizerSettings(),
        schedule=ScheduleSettings(max_steps=800, warmdown_fraction=0.6),
        data=DataSettings(batch_tokens=2_048, sequence_length=256, micro_batch_sequences=8),
        snapshots=SnapshotSettings(start_lr_scale=0.1, every_steps=6),
        qat=base.train.qat.derive(start_lr_scale=0.0, rules=rules),
    )
    return base.derive(
        train=train,
        merge=base.merge.derive(averaging=AveragingSettings(start_lr_scale=0.1)),
        quantize=base.quantize.derive(rules=rules),
        publish=PublishOptions(title="Fairway: medium preset"),
    )
