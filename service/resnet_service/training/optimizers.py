"""The optimizers of a run and their learning-rate schedules: SGD, and Muon for convolution kernels."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR


class OptimizerGroup:
    """SGD with Nesterov momentum under OneCycleLR and, if `muon_lr` is above 0, Muon for convolution kernels.

    SGD's momentum cycles by 0.05 around its value. Muon (Jordan et al., 2024) orthogonalizes each step of a
    kernel, so that directions with small gradients learn as fast as those with large ones; this suits
    networks with batch norm after each convolution that are trained from scratch.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        max_lr: float,
        muon_lr: float,
        momentum: float,
        weight_decay: float,
        total_steps: int,
    ) -> None:
        """Optimize those parameters of `network`, in channels_last, that require a gradient."""
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        kernels = [parameter for parameter in parameters if parameter.ndim == 4 and muon_lr]
        kernel_ids = set(map(id, kernels))
        sgd_parameters = [parameter for parameter in parameters if id(parameter) not in kernel_ids]
        # A quarter of the run is warm-up, but at least two steps: OneCycleLR divides by zero after one.
        warmup_share = min(0.5, max(0.25, 2 / total_steps))
        self._optimizers: list[torch.optim.Optimizer] = []
        self._schedules: list[OneCycleLR] = []
        if sgd_parameters:
            sgd = torch.optim.SGD(
                sgd_parameters,
                lr=max_lr,
                momentum=momentum,
                weight_decay=weight_decay,
                nesterov=momentum > 0,
            )
            self._optimizers.append(sgd)
            self._schedules.append(
                OneCycleLR(
                    sgd,
                    max_lr,
                    total_steps=total_steps,
                    pct_start=warmup_share,
                    cycle_momentum=momentum > 0,
                    base_momentum=max(0.0, momentum - 0.05),
                    max_momentum=min(0.99, momentum + 0.05),
                )
            )
        if kernels:
            muon = KernelMuon(kernels, lr=muon_lr)
            self._optimizers.append(muon)
            self._schedules.append(
                OneCycleLR(
                    muon, muon_lr, total_steps=total_steps, pct_start=warmup_share, cycle_momentum=False
                )
            )

    @property
    def learning_rate(self) -> float:
        """SGD's learning rate at the next step; Muon's is the same share of its own peak."""
        return float(self._schedules[0].get_last_lr()[0])

    def zero_grad(self) -> None:
        """Clear the gradients of the last step."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """Take one step of each optimizer with the current gradients, and one of each schedule."""
        for optimizer in self._optimizers:
            optimizer.step()
        for schedule in self._schedules:
            schedule.step()

    def state(self) -> list[dict[str, Any]]:
        """Return everything that later steps depend on."""
        return [part.state_dict() for part in self._parts()]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Continue from `state`, which a group with the same arguments has returned."""
        for part, part_state in zip(self._parts(), state, strict=True):
            part.load_state_dict(part_state)

    def _parts(self) -> Iterator[torch.optim.Optimizer | OneCycleLR]:
        yield from self._optimizers
        yield from self._schedules


class KernelMuon(torch.optim.Muon):
    """torch's Muon, which accepts only matrices, for kernels [O, I, H, W]: each is a matrix of O rows."""

    def __init__(self, kernels: Sequence[nn.Parameter], *, lr: float) -> None:
        """Optimize kernels in channels_last; their matrices are then views of them, not copies."""
        self._kernels = kernels
        super().__init__([nn.Parameter(_matrix(kernel.detach())) for kernel in kernels], lr=lr)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the kernels too, which are not in the parameter groups."""
        super().zero_grad(set_to_none)
        for kernel in self._kernels:
            kernel.grad = None

    def step(self, closure: Any = None) -> Any:
        """Take one step; copies the kernels' gradients to the matrices first."""
        for matrix, kernel in zip(self.param_groups[0]["params"], self._kernels, strict=True):
            if kernel.grad is not None:
                matrix.grad = _matrix(kernel.grad.contiguous(memory_format=torch.channels_last))
        return super().step(closure)  # type: ignore[no-untyped-call]


def _matrix(kernel: torch.Tensor) -> torch.Tensor:
    """Return a kernel [O, I, H, W] in channels_last as [O, H * W * I], with the same memory."""
    return kernel.permute(0, 2, 3, 1).view(len(kernel), -1)
