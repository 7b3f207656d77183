"""The plugin between a model definition and DeepSpeed ZeRO.

The names below are `deepspeed.zero`'s own, for scripts that say `import ds_llama as deepspeed`.
"""

from __future__ import annotations

from deepspeed.runtime.zero import (
    GatheredParameters,
    Init,
    TiledLinear,
    register_external_parameter,
)

__all__ = ["GatheredParameters", "Init", "TiledLinear", "register_external_parameter"]
