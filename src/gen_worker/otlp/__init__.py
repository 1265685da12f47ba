"""The process that sends spans of jobs to a collector, in OpenTelemetry's protocol. It never learns what a job is about."""
