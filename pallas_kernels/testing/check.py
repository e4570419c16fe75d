"""`check_attention`: runs the named checks on an attention function and reports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.flash.functions import nearest_name
from pallas_kernels.testing.checks import CHECKS, Check
from pallas_kernels.testing.choosing import Seeded, Space
from pallas_kernels.testing.report import ConformanceError, Report, Result
from pallas_kernels.testing.subject import TOLERANCES, Subject


def check_attention(
    fn: Callable[..., Any],
    *,
    checks: Sequence[str] | None = None,
    seeds: int = 20,
    lengths: Sequence[tuple[int, int]] = Space.lengths,
    heads: Sequence[tuple[int, int]] = Space.heads,
    head_dims: Sequence[tuple[int, int]] = Space.head_dims,
    dtypes: Sequence[str] = ("float32",),
    tolerances: Mapping[str, float] = TOLERANCES,
) -> Report:
    """Judges an attention function by the reference backend in float32, at the highest precision of products.

    Args:
        fn: `fn(q, k, v, **options)` with the meaning of `pallas_kernels.attention`. It is handed the options in use and no others. A call with an option
            that it has no keyword for counts as refused, and so does one at which it raises NotImplementedError.
        checks: names out of `CHECKS`, in whose order they run; all unless given.
        seeds: cases to a check, numbered from 0. The same seed makes the same case everywhere.
        lengths: pairs of T and S: the first within one tile of the kernel, the others over several.
        heads: pairs of N and K: the first with N = K, the others with N above K.
        head_dims: pairs of H and Hv: the first with H = Hv, the others not.
        dtypes: of q, k and v, taken in turn. The checks of short floats have their own.
        tolerances: the largest error allowed by dtype's name, as a share of the largest number in the array; gradients may have twice that.

    Returns:
        A `Report`, which prints as a table. See its `refused` for what was not judged.

    Raises:
        ConformanceError: an AssertionError, after all checks have run. It names each check that failed, what it is meant to find, and its first case.
            Or every case was refused. TypeError, ValueError: an argument of another form, or a check's name that is none.
    """
    _check_arguments(fn, checks, seeds, {"lengths": lengths, "heads": heads, "head_dims": head_dims}, dtypes, tolerances)
    space, subject = Space(lengths, heads, head_dims), Subject(fn, tolerances)
    with jax.default_matmul_precision("highest"):
        report = Report(tuple(_run(check, subject, space, seeds, dtypes) for check in _named(checks)))
    if report.failed or not any(result.passed for result in report.results):
        raise ConformanceError(report)
    return report


def _check_arguments(fn: Any, checks: Any, seeds: Any, pairs: Mapping[str, Any], dtypes: Any, tolerances: Mapping[str, float]) -> None:
    if not callable(fn):
        raise TypeError(f"fn: expected an attention function, received {type(fn).__name__}")
    if isinstance(checks, str) or (checks is not None and not list(checks)):
        raise ValueError(f"checks: expected a sequence of names, or None for all, received {checks!r}")
    if not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds: expected at least 1, received {seeds!r}")
    for name, given in pairs.items():
        if not given or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 and min(pair) > 0 for pair in given):
            raise ValueError(f"{name}: expected pairs of positive integers, such as {getattr(Space, name)}, received {given!r}")
    if wrong := [pair for pair in pairs["heads"] if pair[0] % pair[1]]:
        raise ValueError(f"heads: expected pairs of N and K with N a multiple of K, received {wrong[0]!r}")
    if isinstance(dtypes, str) or not list(dtypes) or not set(dtypes) <= TOLERANCES.keys():
        raise ValueError(f"dtypes: expected names out of {', '.join(TOLERANCES)}, received {dtypes!r}")
    if tolerances.keys() != TOLERANCES.keys() or not all(0 < t < 1 for t in tolerances.values()):
        raise ValueError(f"tolerances: expected a share between 0 and 1 for each of {', '.join(TOLERANCES)}, received {dict(tolerances)}")


def _named(names: Sequence[str] | None) -> list[Check]:
    for name in names or ():
        if name not in CHECKS:
            raise ValueError(f"checks: expected names out of {', '.join(CHECKS)}, received {name!r}{nearest_name(name, CHECKS)}")
    return [check for name, check in CHECKS.items() if names is None or name in names]


def _run(check: Check, subject: Subject, space: Space, seeds: int, dtypes: Sequence[str]) -> Result:
    passed, refusals, failures = 0, [], []
    for seed in range(seeds):
        call = check.case(Seeded(seed), check.space(space))
        if call.q.dtype == jnp.float32:
            call = call.astype(dtypes[seed % len(dtypes)])
        try:
            check.judge(subject, call)
            passed += 1
        except NotImplementedError as refusal:
            refusals.append(str(refusal))
        except Exception as error:  # whatever a stranger's function raises is a finding, and the other checks go on
            failures.append(f"seed {seed}: {call}\n  {_in_short(error)}")
    return Result(check.name, check.finds, passed, tuple(refusals), tuple(failures))


def _in_short(error: Exception) -> str:
    text = str(error).strip()
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text.partition(chr(10))[0]}"
