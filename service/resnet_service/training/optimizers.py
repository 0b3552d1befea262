"""The optimizers of a run under their schedules: SGD, and Muon for the kernels of convolutions."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR


class OptimizerGroup:
    """SGD with Nesterov momentum under OneCycleLR and, where `muon_lr` is not 0, Muon beside it.

    SGD's momentum cycles by 0.05 around its value. Muon (Jordan et al., 2024) makes each step of a kernel
    orthogonal, so that directions with small gradients learn as fast as those with large ones; that suits
    networks with batch norm after each convolution, trained from scratch.
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
        """Take the parameters of `network`, in channels_last, that require a gradient."""
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        kernels = [parameter for parameter in parameters if parameter.ndim == 4 and muon_lr]
        taken = set(map(id, kernels))
        rest = [parameter for parameter in parameters if id(parameter) not in taken]
        # A quarter of the run warms up, but two steps at least: OneCycleLR divides by zero after one.
        share = min(0.5, max(0.25, 2 / total_steps))
        self._optimizers: list[torch.optim.Optimizer] = []
        self._schedules: list[OneCycleLR] = []
        if rest:
            sgd = torch.optim.SGD(
                rest, lr=max_lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
            )
            self._optimizers.append(sgd)
            self._schedules.append(
                OneCycleLR(
                    sgd,
                    max_lr,
                    total_steps=total_steps,
                    pct_start=share,
                    cycle_momentum=momentum > 0,
                    base_momentum=max(0.0, momentum - 0.05),
                    max_momentum=min(0.99, momentum + 0.05),
                )
            )
        if kernels:
            muon = KernelMuon(kernels, lr=muon_lr)
            self._optimizers.append(muon)
            self._schedules.append(
                OneCycleLR(muon, muon_lr, total_steps=total_steps, pct_start=share, cycle_momentum=False)
            )

    @property
    def learning_rate(self) -> float:
        """SGD's at the next step; Muon's is the same share of its peak."""
        return float(self._schedules[0].get_last_lr()[0])

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """Take one step with the gradients there are, and one along the schedule."""
        for optimizer in self._optimizers:
            optimizer.step()
        for schedule in self._schedules:
            schedule.step()

    def state(self) -> list[dict[str, Any]]:
        """Return what the steps to come depend on."""
        return [part.state_dict() for part in self._parts()]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Go back to where `state` was taken."""
        for part, own in zip(self._parts(), state, strict=True):
            part.load_state_dict(own)

    def _parts(self) -> Iterator[torch.optim.Optimizer | OneCycleLR]:
        yield from self._optimizers
        yield from self._schedules


class KernelMuon(torch.optim.Muon):
    """torch's Muon, which takes matrices only, for kernels [O, I, H, W]: each is one of O rows."""

    def __init__(self, kernels: Sequence[nn.Parameter], *, lr: float) -> None:
        """Take kernels in channels_last, whose matrices are then views of them."""
        self._kernels = kernels
        super().__init__([nn.Parameter(_matrix(kernel.detach())) for kernel in kernels], lr=lr)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the kernels, too."""
        super().zero_grad(set_to_none)
        for kernel in self._kernels:
            kernel.grad = None

    def step(self, closure: Any = None) -> Any:
        """Take one step with the gradients of the kernels."""
        for matrix, kernel in zip(self.param_groups[0]["params"], self._kernels, strict=True):
            if kernel.grad is not None:
                matrix.grad = _matrix(kernel.grad.contiguous(memory_format=torch.channels_last))
        return super().step(closure)  # type: ignore[no-untyped-call]


def _matrix(kernel: torch.Tensor) -> torch.Tensor:
    """[O, I, H, W] in channels_last -> [O, H * W * I] with the same memory."""
    return kernel.permute(0, 2, 3, 1).view(len(kernel), -1)
