"""Building blocks with plain keyword scalars; only `xycodec.models` reads configurations."""
