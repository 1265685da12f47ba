"""The process that owns one device: it imports the author's module, keeps its instances resident and runs jobs."""
