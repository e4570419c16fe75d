"""Tile sizes."""

from pallas_kernels.flash.request import Request


def choose(request: Request) -> tuple[int, int]:
    """Queries and keys to a tile."""
    sizes = request.sizes
    return min(512, -(-sizes["T"] // 128) * 128), min(512, -(-sizes["S"] // 128) * 128)
