"""The attention conformance kit: judges any attention function by the reference backend. Needs hypothesis and chex.

    print(check_attention(functools.partial(attention, backend="blockwise")))

Or as tests of your own, with and without jit, of the checks that you name:

    import chex
    from pallas_kernels.testing import check_attention
    from my_kernels import my_attention

    class MyAttentionTest(chex.TestCase):

        def check(self, *names):
            fn = self.variant(my_attention, static_argnames=("scale", "return_lse"))
            report = check_attention(fn, checks=names, seeds=2, lengths=((5, 11), (23, 19)))
            self.assertEmpty(report.refused)

        @chex.variants(with_jit=True, without_jit=True)
        def test_values(self):
            self.check("value", "scale", "tiles", "masks")

        @chex.variants(with_jit=True, without_jit=True)
        def test_gradients(self):
            self.check("gradients", "mask_gradients")
"""

from pallas_kernels.testing import strategies
from pallas_kernels.testing.calls import Call, Sizes, mask_as_booleans
from pallas_kernels.testing.check import check_attention
from pallas_kernels.testing.checks import CHECKS
from pallas_kernels.testing.report import ConformanceError, Report, Result

__all__ = ["CHECKS", "Call", "ConformanceError", "Report", "Result", "Sizes", "check_attention", "mask_as_booleans", "strategies"]
