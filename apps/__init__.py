"""The command line, the demo, the report, the dashboard: thin, they only compose the three libraries."""
