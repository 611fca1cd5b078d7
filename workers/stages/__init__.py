"""One file, one stage; each exports `stage`."""
