"""What is kept of what has been: jobs, deaths, counts, spans."""
