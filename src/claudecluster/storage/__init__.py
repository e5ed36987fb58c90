"""The store on SQLAlchemy: tables, queries, migrations, the feed."""
