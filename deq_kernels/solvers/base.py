"""What all solvers share: their stopping options, and the loop around one op per step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor

from deq_kernels.inverse import InverseJacobian
from deq_kernels.ops.limits import Limits
from deq_kernels.ops.termination import Tables
from deq_kernels.options import (
    Options,
    check_count,
    check_flag,
    check_not_negative,
    check_number,
)
from deq_kernels.solvers.machinery.compaction import CompactEvaluation, PerSample
from deq_kernels.solvers.machinery.coupling import difference_norm, look_for_coupling, row_norm
from deq_kernels.solvers.machinery.deferred_reads import finish_deferred_reads
from deq_kernels.solvers.machinery.evaluation import (
    Evaluation,
    RecordedEvaluation,
    bind_evaluation,
)
from deq_kernels.solvers.machinery.loop import StepFunction, iterate
from deq_kernels.solvers.machinery.precision import visible_rtol, working_dtype
from deq_kernels.solvers.machinery.ranks import Ranks, check_ranks
from deq_kernels.solvers.machinery.structure import State, Structure
from deq_kernels.solvers.machinery.unsupported import structure_of_start
from deq_kernels.solvers.solution import Solution


@dataclass(frozen=True, slots=True)
class Iteration:
    """What the steps of one solve work on.

    Attributes:
        evaluation: f at z; a `RecordedEvaluation` for a solver that `differentiates`.
        structure: how rows are states.
        z: the iterates, [B, d], which the steps write.
        best_z: the best ones, likewise.
        tables: statuses, norms and trace, likewise.
    """

    evaluation: Evaluation
    structure: Structure
    z: Tensor
    best_z: Tensor
    tables: Tables


Prepared: TypeAlias = tuple[StepFunction, Callable[[], InverseJacobian | None]]
"""The step taken from each f(z) [B, d], and what makes the inverse estimate at the end."""


@dataclass(frozen=True, kw_only=True)
class Solver(Options):
    """A fixed-point solver for z = f(z): options now, `solver(f, z0)` as often as wanted.

    Args:
        max_steps: largest number of evaluations of f, the one at z0 included.
        rtol: a sample has converged when ‖f(z) − z‖₂ ≤ atol + rtol ‖f(z)‖₂. Once ‖f(z)‖ has doubled
            since the start, rtol counts only where the residual has halved since the last doubling.
        atol: see rtol.
        stall_steps: a sample has stalled when its best residual has not fallen by 1 % within this
            many evaluations; None for never.
        divergence_factor: a residual above this times the sample's first one is rejected like one
            that is not finite.
        cuda_graph: capture f with its step into a CUDA graph in the second step of every solve, and
            replay it from then on. Spares the launches from Python, which pays where a step takes
            the GPU less time than the CPU (small states, f of many small kernels) and a solve takes
            many more steps than the one or two that a capture costs. Only for CUDA states. f must
            only enqueue work, the same in every evaluation, and Python in it runs twice per solve,
            so that changes of z in place are noticed in the first two evaluations only. Device
            memory that f works in is kept for the thread's next solve (`deq_kernels.empty_cache`).
        compact: evaluate f only on the samples that still run, once enough have stopped: as soon as
            those that run fit into fewer rows, counted in 1 to 8, 10, 12, 14, 16, 20, … (less than
            5/4 of those needed). Their rows of z and of what f takes per sample are gathered, so f
            must be a `deq_kernels.PerSample`, which says what that is. A sample's answer is the
            same, bit for bit, if its row of f is the same in whatever batch it is evaluated. Pays
            where samples need very different numbers of steps. The host does not wait for a GPU
            here either: it learns of stopped samples one step late.
        synchronized: for an f that communicates with other processes (sharded weights, statistics
            over all batches): True for the default process group, or a group that this process
            belongs to. All its processes, with the same options, then evaluate f equally often,
            until the last sample of the last one has stopped, those without a sample of their own
            too; the count of running samples is all-reduced after each step. Stopped samples stay
            as they are. An error in one process leaves the others waiting, as in any collective.

    Raises:
        ValueError: an option is out of its range, or two exclude each other.
        TypeError: an option is unknown; the message names the nearest one.
    """

    max_steps: int = 50
    rtol: float = 1e-4
    atol: float = 0.0
    stall_steps: int | None = 30
    divergence_factor: float = 1e6
    cuda_graph: bool = False
    compact: bool = False
    synchronized: Ranks = False

    builds_inverse: ClassVar[bool] = False
    """Whether the solution carries an inverse Jacobian estimate."""

    differentiates: ClassVar[bool] = False
    """Whether steps take products with the Jacobian of f, which autograd then records."""

    capturable: ClassVar[bool] = True
    """Whether a CUDA graph can hold a step; not where it depends on what Python knows, or on
    tensors made anew in each step."""

    interruptible: ClassVar[bool] = True
    """Whether a caller's rule may stop a sample after any evaluation: all are at iterates, and a
    sample's last step is no other than the rest."""

    predicts_residuals: ClassVar[bool] = False
    """Whether the trace also holds predicted residuals, of points where f was not evaluated."""

    measures_residuals: ClassVar[bool] = True
    """Whether a sample stops by the residual that its last evaluation measured."""

    def __post_init__(self) -> None:
        self._take_numpy_numbers()
        check_count("max_steps", self.max_steps)
        check_not_negative("rtol", self.rtol)
        check_not_negative("atol", self.atol)
        if self.stall_steps is not None:
            check_count("stall_steps", self.stall_steps)
        check_number("divergence_factor", self.divergence_factor, lambda x: x > 1, "above 1")
        check_flag("cuda_graph", self.cuda_graph)
        check_flag("compact", self.compact)
        check_ranks("synchronized", self.synchronized)
        if self.compact and self.cuda_graph:
            raise ValueError(
                "compact and cuda_graph exclude each other, as a graph has fixed shapes; got both. "
                "Leave one of them out."
            )
        if self.cuda_graph and not self.capturable:
            raise ValueError(
                f"{type(self).__name__} must have cuda_graph=False: its steps depend on more than "
                "a graph can hold. Use Broyden, or leave cuda_graph out."
            )
        if self.differentiates and (self.compact or self.synchronized is not False):
            raise ValueError(
                f"{type(self).__name__} must have compact=False and synchronized=False: its steps "
                "differentiate f, for all samples at once and only when one of them needs it. Use "
                "Broyden, or leave the options out."
            )

    def visible_limits(self, z: Tensor) -> Limits:
        """When a sample of a state like z stops, as ops take it; rtol is as `Solution.rtol`."""
        rtol = visible_rtol(self.rtol, z.dtype, z.device.type)
        return Limits(
            self.max_steps, rtol, self.atol, self.stall_steps or 0, self.divergence_factor
        )

    def __call__(
        self, f: Callable[..., State], z0: State, *, keep_inverse: bool = True
    ) -> Solution:
        """Solve z = f(z) from z0, each sample by itself.

        A sample is a row of z0, and f must map each row by itself: a sample that has stopped is
        left where it is. Rows that depend on each other (nodes of a graph, tokens under attention,
        a batch normalised by its own statistics) belong in one sample. Where f was evaluated at
        samples that had stopped, its last evaluation shows whether they still meet their tolerance
        (to a factor of 2, and 8 units of rounding); a `CoupledSamplesWarning` tells of those that
        do not: on the CPU at the end of the solve, on a GPU when a later solve begins, as the host
        does not wait. With `compact=True` f is not evaluated there, and nothing is checked.

        The rtol that is used is at least the unit of the working precision, the coarsest of z0's
        dtype and autocast's, where it is not 0: see `Solution.rtol`.

        f runs without autograd; attach a gradient with `deq_kernels.DEQ`. The z it receives is a
        buffer that the next step overwrites: clone what should outlive the call.

        On a GPU the host does not wait for the solution, and learns one step late that no sample
        runs any more: f is evaluated once more then, but never more than `max_steps` times.

        Args:
            f: map of states [B, ...] to states of the same structure, shape, dtype and device. With
                `compact` a `deq_kernels.PerSample`.
            z0: initial state, a tensor [B, ...], or a tuple or NamedTuple of tensors with one
                batch size; float64, float32, float16 or bfloat16. Not modified. A vector [n] is
                refused: it may be one problem, z0[None], or n of them, z0[:, None].
            keep_inverse: leave `inverse_jacobian` in the solution, where the solver builds one.
                Without it the last pass over the history is spared, and its memory freed.

        Returns:
            The best iterate of each sample, with its status, steps, residual and trace.

        Raises:
            TypeError: z0 or f(z) has a wrong structure, dtype or device; or f is no `PerSample`, as
                `compact` needs it.
            ValueError: z0, f(z) or an input of a `PerSample` has a wrong shape, or z0 is not on a
                CUDA device as `cuda_graph` needs it, or `max_steps` differs between processes that
                are `synchronized`.
            RuntimeError: f changed its z in place, or `cuda_graph` could not capture it; or the
                current stream is being captured into a graph of the caller's; or there is no
                process group, as `synchronized` needs it.
            NotImplementedError: z0 has no values, or the solve would be recorded: on the device
                meta, in torch.jit.trace, torch.export, make_fx, or under FakeTensorMode.

        What f raises itself passes through as it is, with a note about which evaluation it was
        where Python has notes (3.11 and newer). The solver can be used again after any error.
        """
        return self._untraced()(f, z0, keep_inverse)

    def _untraced(self) -> Callable[..., Solution]:
        """`_solve`, which torch.compile leaves as it is."""
        if torch.compiler.is_dynamo_compiling():
            # Traced, every step would be code of its own, and slower than as it is written.
            return torch.compiler.disable(self._solve, reason="a solve is a loop on values")
        return self._solve

    def _solve(
        self,
        f: Callable[..., State],
        z0: State,
        keep_inverse: bool,
        stop: Callable[[Tables], None] | None = None,
    ) -> Solution:
        """See `__call__`. `stop` takes the place of the tolerance: called after each step, it marks
        the samples that have converged in the tables. The solver must be `interruptible`."""
        structure = structure_of_start(z0, "z0")
        structure.check_batched("z0")
        finish_deferred_reads()
        rtol = visible_rtol(self.rtol, structure.dtype, structure.device.type)
        if rtol > self.rtol:
            return replace(self, rtol=rtol)._solve(f, z0, keep_inverse, stop)
        if self.cuda_graph and structure.device.type != "cuda":
            raise ValueError(
                "cuda_graph=True needs a state on a CUDA device; got z0 on "
                f"{structure.device}. Move z0 and f to a GPU, or leave cuda_graph out."
            )
        if isinstance(f, PerSample):
            f.check(structure.batch)
        elif self.compact:
            raise TypeError(
                "compact=True needs to know what f takes per sample, as a PerSample; got "
                f"{type(f).__name__}. Pass PerSample(f, x, ...) for f(z, x, ...), or PerSample(f) "
                "if f(z) depends on nothing else that has one row per sample."
            )
        # Inference tensors count no changes, which `evaluate` relies on.
        with torch.inference_mode(False), torch.no_grad():
            stepping = self if stop is None else without_tolerance(self)
            iteration, own_step, finish = stepping._begin(f, z0, structure, keep_inverse)
            tables, step = iteration.tables, own_step
            if stop is not None:

                def step(f_z: Tensor) -> None:
                    own_step(f_z)
                    stop(tables)

            def look_back(f_z: Tensor, taken: int) -> None:
                look_for_coupling(
                    tables,
                    taken if self.measures_residuals else taken + 1,
                    torch.finfo(working_dtype(structure.dtype, structure.device.type)).eps,
                    lambda: self._residual(iteration, f_z),
                    lambda: self._tolerance(iteration, f_z),
                )

            evaluations = iterate(
                iteration.evaluation,
                step,
                tables,
                cuda_graph=self.cuda_graph,
                synchronized=self.synchronized,
                look_back=look_back if structure.batch > 1 else None,
            )
            return Solution(
                structure.unflatten(iteration.best_z),
                tables,
                evaluations,
                finish() if keep_inverse else None,
                rtol=self.rtol,
                atol=self.atol,
            )

    def _begin(
        self, f: Callable[..., State], z0: State, structure: Structure, keep_inverse: bool
    ) -> tuple[Iteration, StepFunction, Callable[[], InverseJacobian | None]]:
        """Set a solve of z = f(z) up, which evaluations and steps then take on."""
        z = structure.flatten(z0).clone(memory_format=torch.contiguous_format)
        tables = Tables.new(structure.batch, self.max_steps, structure.device)
        evaluation: Evaluation
        if self.differentiates:
            evaluation = RecordedEvaluation(f, structure, z)
        elif self.compact:
            assert isinstance(f, PerSample)
            evaluation = CompactEvaluation(f, structure, z, tables)
        else:
            evaluation = bind_evaluation(f, structure, z)
        iteration = Iteration(evaluation, structure, z, torch.empty_like(z), tables)
        return iteration, *self._prepare(iteration, keep_inverse)

    def _residual(self, iteration: Iteration, f_z: Tensor) -> Tensor:
        """Of rows that have stopped, by the last f(z) [B, d]; [B]."""
        return difference_norm(f_z, iteration.z)

    def _tolerance(self, iteration: Iteration, f_z: Tensor) -> tuple[Tensor, Tensor]:
        """Of their residuals, and what a unit of rounding is relative to; each [B]."""
        f_norm = row_norm(f_z)
        return self.atol + self.rtol * f_norm, f_norm

    def _prepare(self, iteration: Iteration, keep_inverse: bool) -> Prepared:
        """Make what the steps need; see `Prepared`."""
        raise NotImplementedError


S = TypeVar("S", bound=Solver)

NEVER_MET = -1.0
"""An absolute tolerance that no residual meets, not even zero."""


def without_tolerance(solver: S) -> S:
    """A copy of a solver whose caller says when a sample is done, which no residual of its is.

    Not one of zero either: where f couples samples, a later one need not be zero. A step from there
    has length zero and no direction, so that it enters no inverse.
    """
    changed = replace(solver, rtol=0.0)
    # Users are refused a tolerance below 0, as it would only cost them their answer.
    object.__setattr__(changed, "atol", NEVER_MET)
    return changed
