"""Mixtures of experts, written out expert by expert: graphs have no grouped matrix product."""

from __future__ import annotations

from typing import Any

_NAME = "written_out"
_PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")


def write_out(torch: Any, transformers: Any, model: Any) -> None:
    """Let a model's experts, if it has any, run one by one, each on the tokens routed to it.

    Their weights become matrices of their own, which is what can be quantized.
    """
    found = [module for module in model.modules() if hasattr(module, "_apply_gate")]
    if not found:
        return

    def forward(self: Any, hidden: Any, chosen: Any, weights: Any) -> Any:
        result = torch.zeros_like(hidden)
        for expert in range(self.num_experts):
            token, place = torch.where(chosen == expert)
            answer = _expert(torch, self, expert, hidden[token])
            result = result.index_add(0, token, answer * weights[token, place, None])
        return result

    transformers.integrations.moe.ALL_EXPERTS_FUNCTIONS.register(_NAME, forward)
    model.set_experts_implementation(_NAME)
    for module in found:
        _split(torch, module)


def _split(torch: Any, module: Any) -> None:
    """Replace stacked weights [experts, ...] by one parameter an expert."""
    for name, stacked in list(module.named_parameters(recurse=False)):
        if name.removesuffix("_bias") in _PROJECTIONS:
            delattr(module, name)
            for expert, part in enumerate(stacked.detach()):
                module.register_parameter(f"{name}_{expert}", torch.nn.Parameter(part))


def _expert(torch: Any, module: Any, expert: int, hidden: Any) -> Any:
    def project(name: str, values: Any) -> Any:
        weight = getattr(module, f"{name}_{expert}")
        if module.is_transposed:
            weight = weight.T
        bias = getattr(module, f"{name}_bias_{expert}", None)
        return torch.nn.functional.linear(values, weight, bias)

    if module.has_gate:
        inner = module._apply_gate(project("gate_up_proj", hidden))
    else:
        inner = module.act_fn(project("up_proj", hidden))
    result = project("down_proj", inner)
    return module.post_expert_norm(result) if module.has_post_expert_norm else result
