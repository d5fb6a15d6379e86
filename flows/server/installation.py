"""Pull step of the deployments: a run begins in the program's folder of the machine that runs it."""

from stages.processes.surroundings import ROOT


def own_folder() -> dict[str, str]:
    """The folder of this machine's installation; Prefect makes it the working folder of the run.

    Without a step `prefect deploy` writes the folder of the machine that deploys into every deployment, and
    a run fails on a machine that has no such folder.
    """
    return {"directory": str(ROOT)}
