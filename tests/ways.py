"""Limits that force each of the planner's ways at the size of small networks, by name."""

import math

import hbpcompiler as hbp
from hbpcompiler.compiler.routes import ROUTES
from hbpcompiler.compiler.routes.chunks import NativeProduct
from hbpcompiler.compiler.routes.gram import GramDiagonal
from hbpcompiler.limits import ON_GPU

IN_TAILS = {"few_columns": 0, "spatial_bytes": 64, "recycled_bytes": 1200, "vector_bytes": 64,
            "vector_chunk_bytes": 300}
"""Columns of few numbers travel two or three at a time: how many the last chunk has is known when it runs."""

ROUTE_NAMES = tuple(dict.fromkeys(route.name for route in ROUTES))


def cut(**limits):
    """Limits under which columns are cut however few they are."""
    return hbp.Limits(few_columns=0, **limits)


WAYS = {
    "tails of one column": cut(spatial_bytes=0, recycled_bytes=1, vector_bytes=0, vector_chunk_bytes=1),
    "as on a GPU": ON_GPU,
    "tails of some columns": hbp.Limits(**IN_TAILS),
    "tails of some samples": cut(spatial_bytes=64, recycled_bytes=4000, vector_bytes=64,
                                 vector_chunk_bytes=4000),
    "ends of ways in chunks": hbp.Limits(recycled_bytes=64 * 64, late_chunk_bytes=300, late_time=math.inf),
    "all columns, sample by sample": cut(all_columns_bytes=0, all_columns_chunk_bytes=1),
    "all columns, some samples": cut(all_columns_bytes=0, all_columns_chunk_bytes=20_000),
    "tails inside chunks of samples": cut(all_columns_bytes=0, all_columns_chunk_bytes=20_000, spatial_bytes=64,
                                          recycled_bytes=700),
    "neighbourhoods": cut(neighbourhood_work=math.inf, spatial_bytes=0, recycled_bytes=3000),
    "whole images": hbp.Limits(neighbourhood_work=0),
    "pooled": hbp.Limits(pooled_time=math.inf),
    "not pooled": hbp.Limits(pooled_time=0),
    "compressed": hbp.Limits(compressed_columns=1, compressed_growth=0),
    "nothing fused": hbp.Limits(fused_operations=0),
    "nothing fits the cache": hbp.Limits(cache_bytes=1, one_by_one_bytes=0),
    "one sample and one column everywhere": cut(
        spatial_bytes=0, recycled_bytes=1, vector_bytes=0, vector_chunk_bytes=1, late_chunk_bytes=1, cache_bytes=1,
        one_by_one_bytes=0),
    "inner products sample by sample": hbp.Limits(cache_bytes=300, route_times=((GramDiagonal.name, 0),)),
    "chunks in chunks in chunks": cut(
        all_columns_bytes=0, all_columns_chunk_bytes=3000, spatial_bytes=0, recycled_bytes=400, vector_bytes=0,
        vector_chunk_bytes=400, cache_bytes=100, route_times=((GramDiagonal.name, 0),)),
    "neighbourhoods inside chunks of samples": cut(
        all_columns_bytes=0, all_columns_chunk_bytes=1, neighbourhood_work=math.inf, spatial_bytes=0,
        recycled_bytes=3000, vector_bytes=0),
    "pooled inside tails": cut(pooled_time=math.inf, spatial_bytes=0, recycled_bytes=300, vector_bytes=0,
                               vector_chunk_bytes=300, neighbourhood_work=0),
    "the file of a large network": hbp.Limits(listed_parameters=0, shared_statements=1),
    "the file of a large network, in tails": hbp.Limits(listed_parameters=0, shared_statements=1, **IN_TAILS),
    "kernels for one sample": hbp.Limits(native_image_numbers=0, route_times=((NativeProduct.name, 0),)),
    **{f"route {name}": hbp.Limits(route_times=((name, 0),), half_rows=2, half_columns=0) for name in ROUTE_NAMES},
    **{f"route in tails {name}": hbp.Limits(route_times=((name, 0),), half_rows=2, half_columns=0, **IN_TAILS)
       for name in ROUTE_NAMES},
}
