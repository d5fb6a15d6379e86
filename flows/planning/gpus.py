"""GPUs that the stages of a run need: looked for before the first stage.

Imports neither Prefect nor torch.
"""

from flows.inputs.specs import Plan
from flows.planning.chain import next_stages
from schemas.errors import SpecError
from stages.processes.launch import check_gpus
from stages.store.store import Store


def check_run_gpus(plan: Plan, store: Store) -> None:
    """Raise SpecError, naming the stage, for the first one that runs on this machine and misses a GPU.

    A stage whose result is stored needs none. Without this, a long tokenization would come before the error.
    """
    spec = plan.spec
    computes = {"train": spec.train.compute, "merge": spec.merge.compute, "evaluate": spec.evaluate.compute}
    wanted = {
        name: compute
        for name, compute in computes.items()
        if compute.device == "cuda" and compute.num_nodes == 1
    }
    if not wanted:
        return
    chain, _ = next_stages(plan, store)
    for name, compute in wanted.items():
        if chain[name].record is None:
            try:
                check_gpus(compute)
            except SpecError as error:
                raise SpecError(f"{name}.compute.{error}") from error
