"""How numbers are printed for people: the only place where they are rounded.

Inside the package scores and differences are proportions and p-values are exact; here they become
percentage points, "2e-16" and megabytes. Minus signs are typographic (U+2212).
"""

from __future__ import annotations

import math

_MINUS = "\N{MINUS SIGN}"
# Below this, only the order of magnitude of a p-value means anything.
_TINY_P = 1e-4


def points(proportion: float, *, signed: bool = True) -> str:
    """A proportion in percentage points, two decimals, without the unit.

    Examples
    --------
    >>> points(0.00364), points(-0.1064), points(-1e-9), points(0.0141, signed=False)
    ('+0.36', '−10.64', '0.00', '1.41')
    """
    return _signed(f"{100 * proportion:.2f}", signed)


def change(value: float, *, proportion: bool, signed: bool = True, unit: str = "") -> str:
    """A difference with its unit: percentage points, or the metric's own where that has a name.

    Examples
    --------
    >>> change(-0.1064, proportion=True), change(0.41237, proportion=False)
    ('−10.64 pp', '+0.4124')
    >>> change(0.5, proportion=False, signed=False, unit="perplexity")
    '0.5 perplexity'
    """
    if proportion:
        return f"{points(value, signed=signed)} pp"
    return f"{_signed(f'{value:.4g}', signed)} {unit}".rstrip()


def glance(value: float, *, proportion: bool) -> str:
    """A difference in few characters, where only its size matters.

    Examples
    --------
    >>> glance(-0.0886, proportion=True), glance(0.0003, proportion=True)
    ('−8.9 pp', '0.0 pp')
    >>> glance(0.41237, proportion=False)
    '+0.412'
    """
    return (
        f"{_signed(f'{100 * value:.1f}', True)} pp" if proportion else _signed(f"{value:.3g}", True)
    )


def interval(low: float | None, high: float | None, *, proportion: bool) -> str:
    """Both ends of an interval, in percentage points or in the metric's own unit; no unit printed.

    An end that nothing bounds is None.

    Examples
    --------
    >>> interval(-0.0131, 0.0204, proportion=True)
    '[−1.31, +2.04]'
    >>> interval(None, None, proportion=False)
    '(unbounded)'
    """
    if low is None or high is None:
        return "(unbounded)"
    ends = (points(x) if proportion else _signed(f"{x:.4g}", True) for x in (low, high))
    return "[{}, {}]".format(*ends)


def level(confidence: float) -> str:
    """A confidence level in per cent.

    Examples
    --------
    >>> level(0.9), level(0.975), level(1 - 2 * 0.05)
    ('90%', '97.5%', '90%')
    """
    return f"{100 * confidence:.6g}%"


def score(value: float, *, proportion: bool) -> str:
    """A mean score: per cent where it is a proportion, four digits where it is not.

    Examples
    --------
    >>> score(0.8136, proportion=True), score(13.2468, proportion=False)
    ('81.36%', '13.25')
    """
    return f"{100 * value:.2f}%" if proportion else _signed(f"{value:.4g}", False)


def share(proportion: float) -> str:
    """A share of samples in per cent.

    Examples
    --------
    >>> share(0.02545), share(0.0)
    ('2.5%', '0.0%')
    """
    return f"{100 * proportion:.1f}%"


def p_value(p: float, log10_p: float | None = None, *, threshold: float | None = None) -> str:
    """A p-value with as many digits as it deserves.

    Parameters
    ----------
    p : float
    log10_p : float, optional
        Its logarithm, for values that underflow.
    threshold : float, optional
        Level it is compared with; digits are added until the rounded value lies on the same side.

    Examples
    --------
    >>> p_value(0.8304), p_value(0.0300), p_value(0.0081), p_value(2.3e-16)
    ('0.83', '0.03', '0.0081', '2e-16')
    >>> p_value(0.0, -312.4), p_value(0.0502, threshold=0.05)
    ('4e-313', '0.0502')
    """
    if p < _TINY_P:
        return _tiny(p, log10_p)
    for digits in range(2, 17):
        text = f"{p:.{digits}g}"
        if threshold is None or (float(text) <= threshold) == (p <= threshold):
            break
    return text


def compared(p: float, limit: float, *, log10_p: float | None = None) -> str:
    """A p-value beside the level it is compared with, with digits until they differ as they do.

    Examples
    --------
    >>> compared(0.0502, 0.05), compared(2.3e-16, 0.05), compared(0.030397, 0.0303964)
    ('0.0502 > 0.05', '2e-16 ≤ 0.05', '0.030397 > 0.030396')
    """
    if p < min(_TINY_P, limit / 2):
        return f"{_tiny(p, log10_p)} ≤ {limit:.3g}"
    for digits in range(2, 17):
        left, right = f"{p:.{digits}g}", f"{limit:.{max(digits, 3)}g}"
        if (float(left) <= float(right)) == (p <= limit):
            break
    return f"{left} {'≤' if p <= limit else '>'} {right}"


def count(n: int) -> str:
    """A count with thousands separators.

    Examples
    --------
    >>> count(25282)
    '25,282'
    """
    return f"{n:,}"


def quantity(value: float, unit: str) -> str:
    """A measured value with its unit; bytes become MB or GB (powers of ten).

    Examples
    --------
    >>> quantity(265_000_000, "bytes"), quantity(46.2, "tokens/s"), quantity(1.31e10, "B")
    ('265 MB', '46.2 tokens/s', '13.1 GB')
    """
    if unit.lower() in ("b", "byte", "bytes"):
        value, unit = (value / 1e9, "GB") if abs(value) >= 1e10 else (value / 1e6, "MB")
    if abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        # Three digits without an exponent, however small: 0.00123 s rather than 1.23e-03 s.
        decimals = 2 if value == 0 else min(12, max(0, 2 - math.floor(math.log10(abs(value)))))
        text = f"{value:.{decimals}f}"
    return f"{text.replace('-', _MINUS)} {unit}".rstrip()


def times(ratio: float) -> str:
    """A ratio as a factor.

    Examples
    --------
    >>> times(2.034), times(12.7), times(1.0)
    ('2.03×', '12.7×', '1.00×')
    """
    return f"{ratio:.1f}×" if ratio >= 10 else f"{ratio:.2f}×"


def _tiny(p: float, log10_p: float | None) -> str:
    if p > 0:
        return f"{p:.0e}".replace("e-0", "e-")
    if log10_p is None or not math.isfinite(log10_p):
        return "0"
    exponent = math.floor(log10_p)
    leading = round(10 ** (log10_p - exponent))
    return f"1e{exponent + 1}" if leading == 10 else f"{leading}e{exponent}"


def _signed(text: str, signed: bool) -> str:
    value = float(text)
    if value == 0:
        return text.lstrip("-")
    if value < 0:
        return _MINUS + text[1:]
    return "+" + text if signed else text
