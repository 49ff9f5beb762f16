"""Whether weights are those of the config beside them: each one there, in the sizes it makes.

Libraries make up what is missing, and go on. So it is asked before anything is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qcompiler import settings
from qcompiler.errors import ExportError
from qcompiler.export import kinds
from qcompiler.export.hf import libraries, quiet
from qcompiler.export.sources import read_config

_REMEDY = "put the config.json of these weights there, or all weights of this one"


def check_fit(folder: Path) -> None:
    """ExportError where the weights of a Hugging Face folder don't fit its config.json.

    Headers tell: the model is made without values. That takes a tenth of a second, the libraries
    two to import. What can't be made so is left to what builds it: classes that transformers lacks,
    weights in codes.
    """
    torch, transformers = libraries(needed_for="exports")
    config = read_config(folder)
    name = kinds.architecture(config)
    role = kinds.role_by_name(name)
    loader = loader_of(transformers, role, name)
    if loader is None or settings.table(config, "quantization_config"):
        return
    with quiet(transformers):
        try:
            model, found = _made(torch, loader, folder, device_map="meta")
        except (OSError, MemoryError):
            raise
        except Exception:  # the libraries raise anything, and may not when there are values
            return
    check_sizes(found, f"{folder}", "config.json", _REMEDY)
    # Of other models some weights are never used: a pooler, what masks in training.
    if found["missing_keys"] and role in ("decoder", "pair"):
        raise lacking(folder, model, found)


def loader_of(transformers: Any, role: kinds.Role, name: str) -> Any | None:
    """The class that loads a model; where no head matters, that of its vectors. None where
    transformers has none of this name."""
    if role == "bare" and not name.endswith("Model"):
        return transformers.AutoModel
    return getattr(transformers, name, None)


def loaded(torch: Any, loader: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a folder in float32, and transformers' account of it, "missing_keys" and all.

    ExportError where a weight has other sizes than config.json makes it.
    """
    model, found = _made(torch, loader, folder)
    check_sizes(found, f"{folder}", "config.json", _REMEDY)
    return model, found


def _made(torch: Any, loader: Any, folder: Path, **more: Any) -> tuple[Any, dict[str, Any]]:
    # What does not fit is left out here, and refused: transformers names it on the log.
    model, found = loader.from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **more,
    )
    return model, found


def check_sizes(found: dict[str, Any], where: str, told: str, remedy: str) -> None:
    """ExportError for the first weight that has other sizes than what is `told` makes it."""
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise ExportError(
            f"{where}: the weight '{name}' has sizes {list(stored)}, and {told} makes it "
            f"{list(wanted)}; {remedy}"
        )


def lacking(
    where: Path, model: Any, found: dict[str, Any], told: str = "config.json", remedy: str = _REMEDY
) -> ExportError:
    """The refusal of a model whose weights are not all there."""
    first, *others = sorted(found["missing_keys"])
    sizes = list(model.state_dict()[first].shape)
    more = f" and {len(others)} more" if others else ""
    return ExportError(
        f"{where} lacks weights of {type(model).__name__} as {told} describes it, '{first}' "
        f"{sizes}{more}; {remedy}"
    )
