"""Names of axes, and of the arrays that have them.

    B batch             T queries, or tokens      S keys
    N query heads       K key and value heads     H features of a head
    D d_model           F d_ff                    V vocabulary
    M tokens of a batch in one row                L layers
"""

from typing import TypeAlias

import jax
from jaxtyping import Bool, Float, Int

Array: TypeAlias = jax.Array
Tokens: TypeAlias = Int[Array, "B T"]
Positions: TypeAlias = Int[Array, "B T"]
Valid: TypeAlias = Bool[Array, "B T"]
Hidden: TypeAlias = Float[Array, "B T D"]
Heads: TypeAlias = Float[Array, "B T N H"]
Logits: TypeAlias = Float[Array, "B T V"]
