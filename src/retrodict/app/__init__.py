"""The top room: the command line, run folders, and the HTML report. Nothing else imports it."""
