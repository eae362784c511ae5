"""What the prefixes of names mean: in the head of a generated file stands what occurs in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from hbpcompiler.codegen.roles import Where

EVERYWHERE = Where()
LEGEND: Mapping[str, str] = {
    "g": "gradient",
    "C": "clipped gradient, that of each sample times clip[n]",
    "S": "GGN columns",
    "M": "sampled GGN columns",
    "R": "residual columns, or the diagonal of a residual",
    "Q": "sampled residual columns",
    "P": "residual columns by their signs",
    "H": "the loss's Hessian, sample by sample: its diagonal, or its root's columns",
    "G": "averaged GGN",
    "W": "weighted sums of GGN columns",
    "Z": "weighted sums of sampled GGN columns",
    "J": "derivatives of the model's output",
    "d": "local derivative",
    "dd": "second derivative",
    "sign": "signs of columns, with which their T^2 are summed",
    "identity": "unit vectors e_k as rows",
    "jacobian": "J^T e_k as rows, the same for all samples",
    "pooled": "columns where a pool took its values",
    "index": "where it took them",
    "T": "a parameter's cotangents, by sample and column",
    "noise": "random signs or normal draws",
    "sum": "sum_n T",
    "each": "T of each sample, summed over columns",
    "each_square": "sum_k T^2 by sample",
    "squared_norm": "sum of T^2 by sample",
    "squares": "sum_{nk} T^2",
    "A": "Kronecker factor of the inputs, sums of their outer products",
    "B": "Kronecker factor of the columns, likewise",
    "reduced": "such a factor of what is summed over positions",
    "basis": "what T is seen in, as columns Q_A and Q_B",
    "in_basis": "T in its bases, Q_B^T T Q_A",
    "basis_squares": "sum_{nk} (Q_B^T T Q_A)^2",
    "positive": "sum_{nk} T^2 of columns with sign +",
    "negative": "sum_{nk} T^2 of columns with sign -",
    "vectors": "T by sample and column",
    "dot": "inner products of the samples' T",
    "gram": "inner products of the T of all samples and columns",
    "cross": "inner products of each T with the samples' gradients",
    "direction": "the directions that a call gives",
    "projected": "inner products of T with directions",
    "along": "inner products of each T with sum_n T",
    "column_sum": "sum_{nk} w[nk] T, by the weights w that a call gives",
    "histogram": "counts of the entries of T between edges",
    "eigenvalues": "of a factor; or of a block, means of (Q_B^T T Q_A)^2",
    "eigenbasis": "eigenvectors Q_A of A, Q_B of B, as columns",
    "clip": "what each sample's gradient is scaled by",
    "total": "what several places or parameters add to",
    "all": "of all samples and columns",
    "mean": "such a sum, divided by N",
}

MEAN = "mean"
"""In front of other prefixes."""
CHUNKS = ("A loop takes so many samples or columns a turn (chunk= in calls) that what a turn makes stays in the "
          "processor's cache, or within the memory allowed.")
DIVISOR = ("over= is what a sum is divided by, N times the number P of positions where there are several; sums without "
           "it (or alpha=1 / N) are divided where the results are made.")
DIVIDED = re.compile(r"\bover=N\b")
ROOTS = "Norms are roots of absolute values, as a sum of inner products may round to below zero, or to -0.0."
ROOT = re.compile(r"^ *norms\w* = \w+\.abs\(\)", re.M)
LOOP = re.compile(r"^ *for \w+ in range\(0, .+, (\d+|chunk\w*)\):  # \w+ \w+ a turn\b|\bchunk=\d", re.M)
"""Over chunks, here or in a helper."""
DOCSTRING = re.compile(r'"""(?s:.*?)"""')
TARGETS = re.compile(r"^ *\(?([A-Za-z_][\w, \[\]]*?)\)?(?:\[.*?\])?(?:: [^=]*)? = ", re.M)
"""What a statement assigns to."""
NAME = re.compile(r"[A-Za-z_]\w*")
SUFFIXES: Mapping[str, str] = {
    "rows": "leading axes as one",
    "col": "with an axis of length 1 more, as one column has",
    "row": "without an axis of length 1, that of a single column",
    "flat": "with axes joined",
    "strided": "not in the order of its axes, as a kernel lays it out",
    "shaped": "in another shape",
    "turned": "with axes in another order",
    "cast": "in another dtype",
    "placed": "among zeros",
    "scaled": "times a number, or a tensor of fewer numbers",
    "product": "times another tensor",
    "term": "a factor or a term of it",
    "positive": "of columns with sign +",
    "negative": "of columns with sign -",
    "weighted": "times samples' weights or their roots",
    "normalised": "as a norm makes it, before weight and bias",
    "rstd": "of a norm, 1 / sqrt(var + eps)",
    "back": "columns, taken back through the operation that made their value",
    "turn": "of one turn of a loop",
    "pieces": "the input windows that one position of the later convolution sees, as samples of their own",
}
"""What was done to a tensor, in the name of what it made."""
IN_FORMULAS: Mapping[str, tuple[str, str]] = {
    "S": (r"\bS\b", "any columns (g, M, R and others alike)"),
    "U": (r"\bU\b", "the operand or its patches"),
    "P": (r"/ P\b", "the number of positions"),
    "theta": (r"\btheta\b", "the parameter's entries"),
    "J": (r"\bJ\^T", "the operation's Jacobian"),
    "e_k": (r"\be_k\b", "unit vectors"),
    "x": (r"\bx\b", "an operation's operand"),
    "y": (r"\by\b", "what it makes of that, or a loss's target"),
    "E": (r"\bE sum", "the mean over draws"),
    "Q_A, Q_B": (r"\bQ_[AB]\b", "the bases of inputs and columns"),
}
"""How a formula's letter is found, and what it is."""
INDICES: Mapping[str, str] = {"n": "samples", "k": "columns", "p": "positions", "o": "outputs", "i": "inputs",
                              "c": "channels", "d": "features", "v": "rows that an index chooses"}
"""What the indices of formulas count."""
INDEXED = re.compile(r"\b[SU]\[(\w+)\]|\bsum_\{?([nkp]+)\}?")
FORMULA = re.compile(r"(?m)^ *# \S.* = .*|\"\"\".* back, at (?s:.*?)\"\"\"")
"""In a function: in headings and docstrings."""
LETTER = re.compile(r"  # .*\[(?:[^\]]*, )?[a-jl-mo-z]\d*\b")
"""In a shape: a length that differs between calls."""


def legend(code: str, tables: Collection[str] = (), formulas: Collection[str] = (), where: Where = EVERYWHERE) -> str:
    """On the names that occur in the code and in those of its tables, and on the letters of formulas. What begins with
    `where` a value is, a module called norm, says nothing else."""
    statements = DOCSTRING.sub("", code)
    made = {name for targets in TARGETS.findall(statements) for name in NAME.findall(targets)}
    prefixes = {prefix for name in [*tables, *made] if not where.says(name) for prefix in _prefixes(name)}
    found = [f"{prefix}_ {meaning}" for prefix, meaning in LEGEND.items() if prefix in prefixes]
    what = f"Names: {', '.join(found)}. " if found else ""
    suffixes = {re.sub(r"_\d+$", "", name).rpartition("_")[2] for name in made if "_" in name and
                name not in where.outputs}
    behind = [f"_{suffix} {meaning}" for suffix, meaning in SUFFIXES.items() if suffix in suffixes]
    how = f"At their ends: {', '.join(behind)}. " if behind else ""
    sentences = ((DIVISOR, DIVIDED), (ROOTS, ROOT), (CHUNKS, LOOP))
    said = "".join(f" {sentence}" for sentence, pattern in sentences if pattern.search(code))
    letters = " Other letters in shapes are lengths that differ between calls." if LETTER.search(code) else ""
    return (f"{what}{how}{_of_formulas(' '.join([*formulas, *FORMULA.findall(code)]))}"
            f"Shapes stand behind each line: N samples; columns are [N, K, ...].{letters}{said}")


def _of_formulas(text: str) -> str:
    """What letters of formulas are."""
    found = [f"{letter} {meaning}" for letter, (pattern, meaning) in IN_FORMULAS.items() if re.search(pattern, text)]
    used = {letter for groups in INDEXED.findall(text) for group in groups for letter in group}
    counted = [f"{letter} {meaning}" for letter, meaning in INDICES.items() if letter in used]
    if counted:
        found.append(f"indices count {', '.join(counted)}")
    return f"In formulas: {'; '.join(found)}. " if found else ""


def _prefixes(name: str) -> list[str]:
    """What a name begins with: of mean_squares_ggn both words; of an operation that is called mean, or of what is but
    turned, none; of squared_norm_gradient two words in one."""
    first, _, rest = name.partition("_")
    if not rest and first in SUFFIXES:
        return []
    second = rest.partition("_")[0]
    if f"{first}_{second}" in LEGEND:
        return [f"{first}_{second}"]
    if first != MEAN:
        return [first]
    return [MEAN, second] if second in LEGEND else []
