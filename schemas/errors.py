"""The two permanent kinds of error. Everything else that a stage raises counts as transient and is retried."""


class FairwayError(Exception):
    """Base of the errors that a retry cannot mend."""


class SpecError(FairwayError):
    """The user's input is wrong. The message names the field, the value and the remedy; raised before any work."""


class StageError(FairwayError):
    """A stage's own finding: a diverged loss, a bad shard, a submission over the limit. Retrying gives the same."""
