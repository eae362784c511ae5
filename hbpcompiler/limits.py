"""The thresholds that decisions are taken by: facts of a machine and figures fitted by hand, in one frozen `Limits`.

A `Limits` is handed in wherever something is decided (it travels in `Resources`), so that a test, or a user, can force
any way at any size: `hbp.compile(..., limits=hbp.Limits(recycled_bytes=2**20))`. `hbp tune` measures those that can be
measured (`MEASURED`); `hbp tune --show` lists all. Their defaults are those of a 2-core CPU under glibc; `ON_GPU` are a
GPU's, which has no small cache to work in, keeps its memory, and waits for calls: what is done at once is done fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any

from hbpcompiler.errors import OptionError


def limit(default: float | tuple[int, ...], unit: str, reason: str, least: int = 0) -> Any:
    """A field of `Limits`: its default, what it counts, what it decides, and the least that it may be."""
    return field(default=default, metadata={"unit": unit, "reason": reason, "least": least})


@dataclass(frozen=True)
class Limits:
    """Thresholds, each with its unit and its reason (`rows`)."""

    # -- memory ------------------------------------------------------------------------------------------------------
    cache_bytes: int = limit(2**21, "bytes", "a chunk's temporaries stay below this, to be squared and summed in cache")
    cached_speedup: float = limit(4, "times", "what fits the cache moves so many times faster than what does not", 1)
    recycled_bytes: int = limit(
        2**24, "bytes", "memory of larger tensors goes back to the system, and the next one pays for new pages")
    huge_page_bytes: int = limit(
        2**62, "bytes", "totals from this size on (2**22, say) lie in huge pages, where the system has some: fewer "
        "page faults; by default none, for a virtual machine may have to get such memory first, which takes longer")
    allowance: float = limit(1.05, "times", "peak memory beside what tensors hold; measured peaks are 0.9 to 1.18", 1)
    budget_shares: tuple[int, ...] = limit(
        (4, 16, 64), "parts", "under a budget a chunk gets such a part of what is left: several are alive at once", 1)

    free_share: float = limit(
        0.8, "times", "without a memory_budget a plan keeps to so much of what the machine, or the device, has free")
    unchecked_bytes: int = limit(
        2**28, "bytes", "a call that is predicted to need no more is made without asking what is free")

    announced_seconds: float = limit(
        60, "seconds", "a call that is predicted to take longer says so before it starts, and shows how far it is")

    remade_seconds: float = limit(
        10, "seconds", "a program that took no longer to make is made again, for what a long call is compared with; "
        "one that took longer, only where the call itself takes ten times as long")

    kept_programs: int = limit(
        64, "programs", "of one compiled model, for forms of a batch and states of Python; those used last are kept", 1)

    # -- columns that travel -----------------------------------------------------------------------------------------
    typical_batch: int = limit(64, "samples", "ways are compared at this batch size; a program serves every size", 1)
    typical_vectors: int = limit(
        8, "vectors", "of directions and column weights so many are planned for; a program serves every number", 1)
    spatial_bytes: int = limit(
        2**23, "bytes per sample", "columns of images beyond it go in chunks, as large as memory that is recycled")
    few_columns: int = limit(
        1, "columns", "so many, or fewer, are no more than what a gradient sends back: they go in chunks only where "
        "that is predicted to be faster, or memory is limited")
    vector_bytes: int = limit(
        2**15, "bytes per sample", "columns of values with one axis beyond it go in chunks: those fit a cache")
    vector_chunk_bytes: int = limit(
        2**20, "bytes", "a chunk of these; matrix products are as fast on few samples, and caches cost no traffic")
    late_chunk_bytes: int = limit(
        2**20, "bytes", "a chunk of few columns, whose whole batch would be more than what is recycled")
    late_time: float = limit(
        1, "times", "and it goes in chunks if that is predicted to take less than so many times the time of the whole")
    all_columns_bytes: int = limit(
        2**28, "bytes per batch", "all columns together beyond it go in chunks of samples, whatever their ways")
    all_columns_chunk_bytes: int = limit(2**25, "bytes", "a chunk of all columns together")
    neighbourhood_work: float = limit(
        1, "times", "columns go by neighbourhoods if these have fewer than so many times the numbers of whole images")
    compressed_columns: float = limit(
        2, "times", "columns are compressed where they are so many times the numbers of the value, and")
    compressed_growth: float = limit(
        8, "times", "a value so many times as large is still to come: factorising small matrices is slow arithmetic")
    pooled_time: float = limit(
        1, "times", "columns end at pooled positions if that takes less than so many times the other routes' time")
    pooled_slowdown: float = limit(
        2, "times", "a product for every channel takes so many times one large product's time; measured on 3C3D")
    drawn_bytes: int = limit(
        2**28, "bytes per sample", "columns of a residual whose rule draws no sums of them: beyond it they are not "
        "made at once, to draw some in their place: all of them travel, in chunks")
    derived_columns: int = limit(
        2**11, "columns", "more of them, for the second derivative of an operation without a rule, are refused")
    full_block_rows: int = limit(2**14, "rows", "larger blocks of parameters without input features are refused")

    # -- second phases -----------------------------------------------------------------------------------------------
    kept_bytes: int = limit(
        2**40, "bytes per batch", "the gradient's columns at all parameters beyond it are not kept for a second phase, "
        "but sent back again; as a rule memory_budget, or what is free, decides")
    formed_bytes: int = limit(
        2**28, "bytes per batch", "per-sample gradients of all parameters together that are kept for a second phase")
    formed_time: float = limit(
        1.15, "times", "and they are, where this is predicted to take less than so many times the time of norms and a "
        "second closing; measured on linear layers it takes 0.7 of that time where as much is predicted")

    # -- routes at the parameters ------------------------------------------------------------------------------------
    one_by_one_bytes: int = limit(
        2**19, "bytes", "larger products of one sample are squared and added column by column, in one pass")
    squaring_speedup: float = limit(
        1.5, "times", "a product that is squared and summed in cache costs so many times less than reading it once", 1)
    native_image_numbers: int = limit(
        20480, "numbers", "torch takes convolutions of larger images to oneDNN, whose kernel then wins for one sample")
    native_kernel_length: int = limit(3, "places", "it takes those of longer kernels there as well")
    gram_passes: float = limit(3, "passes", "over inner products between positions, where their memory is recycled")
    gram_fresh_passes: float = limit(10, "passes", "over these where it is not, but paid for in page faults")
    rearranged_passes: float = limit(
        10, "passes", "over a parameter, from the order that oneDNN sums in to its own: 2 to 3 ns a number, on 3 x 3 "
        "kernels")
    turned_slowdown: float = limit(
        4, "times", "a copy that turns rows into columns moves so many times fewer bytes a second", 1)
    rearranged_images: float = limit(
        4, "numbers", "of images are brought to oneDNN's order in the time of one of a weight: measured on 512 "
        "channels of 2 x 2 pixels")
    adding_passes: float = limit(
        7, "passes", "over what products of pixels add to A: some numbers of each line at a time, read, and A read and "
        "written")
    cached_adding_passes: float = limit(3, "passes", "over it where A stays in cache")
    cached_shares: float = limit(2, "times", "cache_bytes, up to which A stays there meanwhile")
    mirrored_passes: float = limit(
        8, "passes", "over what is below A's diagonal: lines that are read lie across those that are written")
    row_numbers: int = limit(
        64, "numbers", "torch takes norms of such rows in one pass, without their squares in between; shorter ones "
        "take longer")
    single_channel_bytes: float = limit(
        2, "bytes", "as many to move, for each multiply-add of a rule's own product of single channels: it is slow")
    taps_per_byte: float = limit(
        8, "places", "of a window are as much as a byte to move, for each multiply-add of torch's kernel of single "
        "channels", 1)
    pair_positions: int = limit(
        16, "positions", "with more of them, products of every two cost more than one product for each sample does")
    half_rows: int = limit(256, "rows", "symmetric products of fewer are made whole: a block is no work for a kernel")
    half_columns: int = limit(
        320, "columns", "products of fewer are made whole, when it comes to it: to mirror takes longer than the half "
        "that is left out; and what oneDNN would make beside a total is made in it, by BLAS")
    half_blocks: int = limit(
        4, "blocks", "a quarter of the rows at a time leaves out 3/8 of the work; more blocks, hardly more of it", 1)
    eigen_multiply_adds: float = limit(10, "cubes", "multiply-adds of an eigendecomposition, in cubes of its size")

    route_times: tuple[tuple[str, float], ...] = limit(
        (), "times", "(name, t): a route is taken to last t times as long as it is predicted to; 0 forces it")

    # -- whole data sets ---------------------------------------------------------------------------------------------
    grown_bytes: int = limit(
        2**20, "bytes", "totals that hold so much together are added to by programs while they run; smaller ones when "
        "a program is done, in the plainest way")
    partial_bytes: int = limit(
        2**26, "bytes", "sums of a few batches in a program's own dtype, beside totals in float64; what does not fit "
        "is added to its total at once")
    message_bytes: int = limit(
        2**25, "bytes", "small tensors go together to other ranks, so many at a time; a larger one goes by itself")
    direction_bytes: int = limit(2**28, "bytes", "of the directions that one call is given, for influence scores")

    # -- the program's text ------------------------------------------------------------------------------------------
    fused_operations: int = limit(60, "operations", "longer expressions of elementwise operations stay in pieces")
    onednn_multiply_adds: int = limit(
        2**19, "multiply-adds", "oneDNN takes float32 products from this size on: a call of it costs more")
    onednn_rows: int = limit(
        64, "rows and columns", "of a product that oneDNN takes: with fewer, reading its operands is most of the work")
    joined_columns: int = limit(
        49, "columns", "a matrix meets those of all samples in one product if each has no more: otherwise it is read "
        "again for every sample, which takes 2 to 20 times as long", 0)
    joined_numbers: int = limit(2**14, "numbers", "of such a matrix: smaller ones stay in cache")
    listed_parameters: int = limit(
        20, "parameters", "with results for more of them a file is a large network's: values stand in tables by the "
        "parameters' names, and alike parts share functions")
    shared_statements: int = limit(
        8, "statements", "alike parts share a function if so many need not be written again", 1)
    large_numbers: int = limit(2**16, "numbers", "a tensor of so many is deleted early and written over")
    large_item_numbers: int = limit(2**10, "numbers", "for each sample or column of a chunk, that are deleted early")

    # -- races (`autotune`) ------------------------------------------------------------------------------------------
    near_tie: float = limit(2, "times", "routes predicted to take up to so many times the best one's time are raced", 1)
    racers: int = limit(6, "sets of routes", "no more take part in a race", 1)
    race_rounds: int = limit(7, "rounds", "of a race, of which the median counts", 1)

    def __post_init__(self) -> None:
        for own in fields(self):
            value, least = getattr(self, own.name), own.metadata["least"]
            if not is_possible(own, value):
                raise OptionError(f"limit {own.name} must be {KINDS[str(own.type)]}, {least} or more, not {value!r}")

    def rows(self) -> Iterator[tuple[str, Any, str, str]]:
        """(name, value, unit, reason) of each limit."""
        for own in fields(self):
            yield own.name, getattr(self, own.name), own.metadata["unit"], own.metadata["reason"]

    def changed(self) -> dict[str, Any]:
        """Those that differ from the defaults of the kind of device that these are nearest to."""
        return self._other_than(self.nearest())

    def nearest(self) -> Limits:
        """The defaults of the kind of device, CPU or GPU, of which most of these are."""
        return min((DEFAULT_LIMITS, ON_GPU), key=lambda default: len(self._other_than(default)))

    def _other_than(self, default: Limits) -> dict[str, Any]:
        values = {own.name: (getattr(self, own.name), getattr(default, own.name)) for own in fields(self)}
        return {name: value for name, (value, usual) in values.items() if value != usual}


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "tuple[int, ...]": "a tuple of whole numbers",
    "tuple[tuple[str, float], ...]": "a tuple of pairs of a route's name and a number",
}
"""What a field's type says, in words."""


def is_possible(own: Field[Any], value: Any) -> bool:
    """Whether a limit can have this value."""
    least = own.metadata["least"]
    match str(own.type):
        case "int":
            return _is_number(value, int) and value >= least
        case "float":
            return _is_number(value, int | float) and value >= least
        case "tuple[int, ...]":
            return isinstance(value, tuple) and bool(value) and all(_is_number(one, int) and one >= least
                                                                    for one in value)
        case _:
            return isinstance(value, tuple) and all(
                isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
                and _is_number(pair[1], int | float) and pair[1] >= least for pair in value)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


DEFAULT_LIMITS = Limits()
ON_GPU = Limits(
    cache_bytes=2**28, recycled_bytes=2**30, spatial_bytes=2**26, vector_bytes=2**25, vector_chunk_bytes=2**28,
    late_chunk_bytes=2**28, all_columns_bytes=2**31, all_columns_chunk_bytes=2**28, one_by_one_bytes=2**40,
    half_rows=2**20, drawn_bytes=2**31, formed_bytes=2**31, joined_columns=0)
"""Of a GPU: chunks only where memory asks for them."""


def default_limits(device: str) -> Limits:
    """Those of a device's kind: "cpu", "cuda", ..."""
    return DEFAULT_LIMITS if device in ("cpu", "meta") else ON_GPU


MEASURED = ("cache_bytes", "recycled_bytes", "onednn_multiply_adds")
"""What `hbp tune` measures of them."""
