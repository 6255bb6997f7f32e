"""The demo hospital's mail server: takes mail over STARTTLS alone and keeps each message as a file."""
