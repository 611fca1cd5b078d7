"""One file, one resource; each exports `routes`."""
