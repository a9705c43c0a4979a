"""JSON as Python reads and writes it: an object whose values nobody has checked."""

from collections.abc import Mapping

Json = dict[str, object]
JsonMapping = Mapping[str, object]  # one that is only read
