"""Files of jobs on their way to the platform's store; part of the fetcher's process."""
