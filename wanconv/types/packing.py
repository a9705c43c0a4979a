"""How a client stores a weight that has scales."""

from dataclasses import dataclass
from math import prod

from wanconv.types.dtypes import DTYPES
from wanconv.types.tensors import Shape

TILE = (128, 4)  # rows and columns of scales of blocks: cuBLAS documentation, 1D Block Scaling Factors Layout


@dataclass(frozen=True, slots=True)
class Packing:
    """How one client stores a weight that has scales: as tensors next to the payload.

    The last part of a name is its leaf: `payload` and `scales` are the leaves that stand for `weight`, `constants`
    those of further tensors, bytes that never change. One scale for the `tensor` has the shape `()`, those of each
    `row` are `(rows, 1)`, or `(rows,)` if `flat`, and those of each `block` of a row whole tiles of 128 rows and 4
    columns. `inputs` is the leaf of the calibrated scale of the layer's inputs. It is read from third-party files and
    does not affect the stored weight. `since` is the client's first version known to read it.

    Files hold the payload of blocks in the dtype `storage`, its bytes in the same rows, and their scales in
    `scale_dtype`; `whole` is the leaf of one float32 scale that multiplies them all. `caution` is a warning about
    the format there.
    """

    client: str
    format: str
    scale: str
    payload: str = "weight"
    scales: str = "weight_scale"
    constants: tuple[tuple[str, bytes], ...] = ()
    inputs: str | None = None
    since: str = ""
    flat: bool = False
    storage: str = ""
    scale_dtype: str = "fp32"
    whole: str | None = None
    caution: str = ""

    @property
    def payload_dtype(self) -> str:
        """The dtype of the payload in a file."""
        return self.storage or self.format

    def payload_shape(self, shape: Shape) -> Shape:
        """Returns the shape in a file of the payload of a weight."""
        if not self.storage:
            return shape
        return (shape[0], DTYPES[self.format].nbytes(shape[1]) // DTYPES[self.storage].itemsize)

    def shape_of(self, payload: Shape) -> Shape:
        """Returns the shape of the weight whose payload a file has in this shape."""
        if not self.storage or len(payload) != 2:
            return payload
        return (payload[0], DTYPES[self.format].numel(payload[1] * DTYPES[self.storage].itemsize))

    def scale_shape(self, shape: Shape) -> Shape:
        if self.scale == "block":
            rows, columns = TILE
            blocks = shape[1] // DTYPES[self.format].block
            return (-(-shape[0] // rows) * rows, -(-blocks // columns) * columns)
        if self.scale != "row":
            return ()
        return (shape[0],) if self.flat else (shape[0], 1)

    def scales_nbytes(self, shape: Shape) -> int:
        """Returns the bytes of all scales of a weight."""
        nbytes = prod(self.scale_shape(shape)) * DTYPES[self.scale_dtype].itemsize
        return nbytes + (DTYPES["fp32"].itemsize if self.whole else 0)
