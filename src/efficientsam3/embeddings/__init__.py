"""The embedding store: record format, codecs, writer, reader."""
