"""The benchmark cases: which model, how it is differentiated, and when its solves stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deq_zoo.equilibrium import GRADIENTS
from deq_zoo.registry import MODELS

FIXED = "fixed"
TOLERANCE = "tolerance"
STOPS = (TOLERANCE, FIXED)


@dataclass(frozen=True)
class StepCase:
    """One model on its bundled data.

    Attributes:
        model: its name in the registry.
        preset: one whose dataset is bundled.
        gradient: name of the estimator.
        stop: "tolerance": solves stop as in training; "fixed": every provider takes all steps that
            the preset allows.
    """

    model: str
    preset: str
    gradient: str
    stop: str = TOLERANCE

    @property
    def settings(self) -> Mapping[str, object]:
        """What it changes of the preset, beside the gradient and the stopping rule."""
        # Its masks are drawn after the solve, in which torchdeq draws random numbers of its own.
        return {"model.dropout": 0.0} if self.model == "ignn" else {}

    @property
    def name(self) -> str:
        """The name on the command line: ``MODEL/PRESET/GRADIENT``, with ``/fixed`` for those."""
        suffix = f"/{FIXED}" if self.stop == FIXED else ""
        return f"{self.model}/{self.preset}/{self.gradient}{suffix}"


CASES = (
    *(StepCase("mdeq", "digits", gradient) for gradient in GRADIENTS),
    *(StepCase("mdeq", "digits", gradient, FIXED) for gradient in ("implicit", "jfb", "unrolled")),
    *(StepCase("transformer", "pydoc", gradient) for gradient in ("implicit", "jfb", "unrolled")),
    *(StepCase("ignn", "chains", gradient) for gradient in ("implicit", "jfb", "unrolled")),
)
QUICK_CASES = (StepCase("mdeq", "digits", "implicit"), StepCase("mdeq", "digits", "unrolled"))


def parse_case(text: str) -> StepCase:
    """Read ``MODEL/PRESET/GRADIENT[/fixed]``.

    Raises:
        ValueError: it has another form, or names a model or gradient that is not there.
    """
    parts = text.strip().split("/")
    stop = TOLERANCE
    if len(parts) == 4 and parts[3] == FIXED:
        stop = FIXED
        parts = parts[:3]
    if len(parts) != 3 or parts[0] not in MODELS or parts[2] not in GRADIENTS:
        raise ValueError(
            "a case is MODEL/PRESET/GRADIENT, and /fixed after them for solves of a fixed length, "
            f"with a model of {', '.join(MODELS)} and a gradient of {', '.join(GRADIENTS)}, but "
            f"got {text!r}; write for example {CASES[0].name}"
        )
    model, preset, gradient = parts
    return StepCase(model, preset, gradient, stop)
