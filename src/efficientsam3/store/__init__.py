"""The embedding store: records, codecs, manifest, writer, reader, maintenance."""
