"""The reading register's schema, one revision a file. Opening a register brings its database to the newest."""
