"""Few questions per candidate: which items a generation is asked, who drops out of the race, what is then believed."""
