"""The methods by name, so that a file or a command line can say which one it means.

Read next: saving.py.
"""

from types import ModuleType
from typing import Any

from minialign.peft import adapters, bitfit, dora, feature_based, full, lora, prompt_tuning
from minialign.runs.errors import UserError
from minialign.runs.settings import from_dict

METHODS: dict[str, ModuleType] = {"full": full, "feature-based": feature_based, "bitfit": bitfit, "adapters": adapters,
                                  "lora": lora, "prompt-tuning": prompt_tuning, "dora": dora}
CONFIGS: dict[str, type] = {"full": full.FullConfig, "feature-based": feature_based.FeatureConfig,
                            "bitfit": bitfit.BitFitConfig, "adapters": adapters.AdapterConfig, "lora": lora.LoRAConfig,
                            "prompt-tuning": prompt_tuning.PromptConfig, "dora": dora.DoRAConfig}
OF_THE_NOTES = tuple(name for name in METHODS if name != "dora")


def configuration(method: Any, values: Any, file: object = None) -> Any:
    """The configuration of a method from plain values. Raises UserError for an unknown method or key."""
    if not isinstance(method, str) or method not in CONFIGS:
        raise UserError(f"the method {method!r} is not known; known are {', '.join(CONFIGS)}", file)
    if not isinstance(values, dict):
        raise UserError(f"the settings of {method} are {values!r}; they must be an object", file)
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return from_dict(CONFIGS[method], plain, file)
