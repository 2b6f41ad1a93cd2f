"""The DuckDB catalogue: views over the Parquet files, and the SQL models of `dbt_like_sql`."""
