"""What the finished field trained, as settings: eleven layers of 512 with a wide MLP and 8,192 pieces.

Sources: the accepted entries of parameter-golf, pull requests 1218 to 1855. `winner` is for eight GPUs and
600 seconds, `winner-1gpu` for one card and minutes.
"""

from presets.record import record
from schemas.averaging_settings import AveragingSettings
from schemas.model_settings import ModelSettings
from schemas.pipeline import PipelineSpec
from schemas.publish import PublishOptions
from schemas.scoring_settings import ScoringSettings
from schemas.tokenize_corpus import ShardsCorpus, TokenizerSpec
from schemas.train_settings import DataSettings, OptimizerSettings, ScheduleSettings, SnapshotSettings

VOCABULARY = 8192


def winner() -> PipelineSpec:
    """36 million parameters, 600 s on eight GPUs; the steps of the quantization are fitted to the limit."""
    base = record()
    train = base.train.derive(
        model=ModelSettings(
            vocab_size=VOCABULARY,
            mlp_hidden=2048,
            xsa_layers=11,
            q_gain_init=5.25,
            smear_gate=False,
            value_embedding_dim=0,
            leaky_slope=0.5,
            skip_gates=True,
            parallel_residuals="one_lane",
            head_gate=True,
            loop_passes=3,
        ),
        optimizer=OptimizerSettings(
            muon_lr=0.026,
            muon_momentum=0.97,
            muon_momentum_warmup_fraction=0.33,
            muon_weight_decay=0.095,
            muon_row_normalize=True,
            embedding_lr=0.03,
            embedding_weight_decay=0.085,
            scalar_lr=0.02,
            scalar_weight_decay=0.02,
        ),
        schedule=base.train.schedule.derive(warmdown_fraction=0.75, min_lr_scale=0.1),
        snapshots=SnapshotSettings(start_lr_scale=0.0, ema_horizon=0.06),
    )
    return base.derive(
        tokenize=base.tokenize.derive(
            corpus=ShardsCorpus(
                folder="data/datasets/fineweb10B_sp8192",
                tokenizer_model="data/tokenizers/fineweb_8192_bpe.model",
            ),
            tokenizer=TokenizerSpec(vocab_size=VOCABULARY),
        ),
        train=train,
        merge=base.merge.derive(averaging=AveragingSettings(method="ema_of_steps")),
        publish=PublishOptions(title="Fairway: winner preset"),
    )


def winner_1gpu() -> PipelineSpec:
    """The same on one GPU, for a text that is read several times: 49,152 tokens a step, so that minutes hold
    enough steps, rates for that batch, and more weight decay against learning the text by heart.

    Windows have 4,096 tokens, twice as many as a training sequence. With much more context than in training
    a model predicts worse (docs/log.md), so the second score looks 2,048 tokens back.
    """
    base = winner()
    one = base.train.compute.derive(num_processes=1)
    schedule: ScheduleSettings = base.train.schedule.derive(max_seconds=300.0, reserve_seconds=0.0)
    scoring: ScoringSettings = base.evaluate.scoring.derive(
        sequence_length=4096, stride=0, attention_window=2048
    )
    return base.derive(
        train=base.train.derive(
            optimizer=base.train.optimizer.derive(
                muon_lr=0.013,
                embedding_lr=0.01485,
                scalar_lr=0.0099,
                muon_weight_decay=0.142,
                embedding_weight_decay=0.11,
            ),
            schedule=schedule,
            data=DataSettings(batch_tokens=49_152, sequence_length=2048, micro_batch_sequences=24),
            compute=one,
        ),
        merge=base.merge.derive(scoring=scoring, compute=base.merge.compute.derive(num_processes=1)),
        evaluate=base.evaluate.derive(scoring=scoring, compute=base.evaluate.compute.derive(num_processes=1)),
        publish=PublishOptions(title="Fairway: winner-1gpu preset"),
    )
