"""PostgreSQL: connections, migrations, the embedded server of development."""
