//! The dialects of the two engines. Migrations are written in PostgreSQL's.

/// The text for PostgreSQL.
pub(super) fn for_postgres(sql: &str) -> String {
    only_for("PostgreSQL", sql).replace(") STRICT;", ");")
}

/// The text for SQLite: the names of types are translated, as whole words.
pub(super) fn for_sqlite(sql: &str) -> String {
    let sql = only_for("SQLite", sql);
    let mut translated = String::with_capacity(sql.len());
    for piece in sql.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let type_name = match word {
            "UUID" | "BYTEA" => "BLOB",
            "TIMESTAMPTZ" | "BOOLEAN" | "BIGINT" => "INTEGER",
            other => other,
        };
        translated.push_str(type_name);
        translated.push_str(&piece[word.len()..]);
    }
    translated
}

/// Drops the sections of the other engine.
fn only_for(engine: &str, sql: &str) -> String {
    let mut is_included = true;
    let included = sql.split_inclusive('\n').filter(|line| {
        if let Some(named) = line.strip_prefix("--- ") {
            is_included = named.trim_end() == engine;
        }
        is_included
    });
    included.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_translated_as_whole_words() {
        assert_eq!(
            for_sqlite("CREATE TABLE a (id UUID, BIGINT_x BIGINT, t TIMESTAMPTZ) STRICT;"),
            "CREATE TABLE a (id BLOB, BIGINT_x INTEGER, t INTEGER) STRICT;"
        );
    }

    #[test]
    fn each_engine_gets_its_own_part() {
        let sql = "A;\n--- SQLite\nB;\n--- PostgreSQL\nC;\n";
        assert_eq!((for_sqlite(sql), for_postgres(sql)), ("A;\n--- SQLite\nB;\n".to_owned(), "A;\n--- PostgreSQL\nC;\n".to_owned()));
    }
}
