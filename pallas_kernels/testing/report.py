"""What a check of an attention function found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """How the cases of one check ended.

    Attributes:
        name: of the check.
        finds: the mistake that it is meant to find.
        passed: number of cases.
        refusals: why cases were refused.
        failures: cases in words, each with what was wrong.
    """

    name: str
    finds: str
    passed: int
    refusals: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def remark(self) -> str:
        """What the counts alone do not say."""
        if self.failures:
            return "FAILED"
        if not self.passed:
            return f"all refused: {self.refusals[0]}"
        return ""


@dataclass(frozen=True)
class Report:
    """The results in the order run, simple things first. Prints as a table."""

    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks of which any case failed."""
        return tuple(r.name for r in self.results if r.failures)

    @property
    def refused(self) -> tuple[str, ...]:
        """Names of the checks that say nothing, all their cases having been refused."""
        return tuple(r.name for r in self.results if r.refusals and not r.passed and not r.failures)

    def __str__(self) -> str:
        width = max(len(r.name) for r in self.results)
        lines = [f"{'check':{width}}  passed  refused  failed"]
        lines += [f"{r.name:{width}}  {r.passed:6}  {len(r.refusals):7}  {len(r.failures):6}  {r.remark}".rstrip() for r in self.results]
        return "\n".join(lines)


class ConformanceError(AssertionError):
    """Some check failed, or nothing was checked at all. `report` has the counts."""

    def __init__(self, report: Report) -> None:
        self.report = report
        failed = [r for r in report.results if r.failures]
        headline = f"{len(failed)} of {len(report.results)} checks failed; a check builds on those above it" if failed else "nothing was checked"
        super().__init__("\n\n".join([headline, *map(_explain, failed), str(report)]))


def _explain(result: Result) -> str:
    count = len(result.failures)
    cases = result.passed + len(result.refusals) + count
    return f"{result.name}: {count} of {cases} cases failed. It is meant to find {result.finds}. The first:\n  {result.failures[0]}"
