"""Make a method that is defined here one of PEFT's own."""

from __future__ import annotations

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method

from workbench.errors import ConfigError


def register(name: str, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Register a method under its name; a second time it does nothing.

    PEFT takes only names of its closed enum `PeftType`, so that the name becomes a true member first: with a plain
    string transformers could not load an adapter.

    Args:
        name: In lower case, without a trailing underscore; `tuner.prefix` is this name and an underscore.
        config: The method's configuration.
        tuner: The method's model.

    Raises:
        ConfigError: PEFT, or another package, has a method of that name.
    """
    known = PeftType.__members__.get(name.upper())
    owner = PEFT_TYPE_TO_CONFIG_MAPPING.get(known) if known is not None else None
    if owner is config:
        return
    if known is not None:
        raise ConfigError(
            f"PEFT already has a method {name!r} ({owner}); two methods cannot share a name. Use a version of peft, or "
            "leave out the package, that does not define it."
        )
    _add_member(name.upper())
    register_peft_method(name=name, config_cls=config, model_cls=tuner, prefix=tuner.prefix)


def check_name(adapter: str, method: str) -> None:
    """Refuse an adapter's name by which its saved tensors could not be told from the method's own.

    Raises:
        ConfigError: The name is part of the method's prefix.
    """
    if adapter in f"{method}_":
        raise ConfigError(
            f"the adapter's name {adapter!r} is part of {method!r}, by which saved tensors are told apart. "
            "Choose another name."
        )


def _add_member(name: str) -> None:
    member = str.__new__(PeftType, name)
    for key, value in (("_name_", name), ("_value_", name), ("_sort_order_", len(PeftType.__members__))):
        setattr(member, key, value)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
