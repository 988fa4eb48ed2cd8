//! Looks up the user of an image configuration in the image's own /etc/passwd and /etc/group, as runc and Docker do.

use std::collections::BTreeSet;

/// Who a container's program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one too, ascending.
    pub groups: Vec<u32>,
}

/// The largest id that runc takes where there is no name for it.
const MAX_ID: u32 = i32::MAX as u32;

/// A line of /etc/passwd.
struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// A line of /etc/group.
struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

/// The user that `user` (empty, or `USER[:GROUP]`, each a name or a number) stands for. `passwd` and `group` are the
/// contents of the image's files, empty where it has none.
///
/// # Errors
/// A name is in neither file.
pub fn look_up(user: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, group_name) = user.split_once(':').unwrap_or((user, ""));
    let number: Option<u32> = match user {
        "" => Some(0),
        user => user.parse().ok(),
    };
    let found = lines(passwd, passwd_line)
        .find(|line| (!user.is_empty() && line.name == user) || Some(line.uid) == number);
    let (uid, default_gid) = match (&found, number) {
        (Some(line), _) => (line.uid, line.gid),
        (None, Some(uid)) if uid <= MAX_ID => (uid, 0),
        _ => return Err(format!("no user {user:?} in the image's /etc/passwd")),
    };
    let mut groups = BTreeSet::new();
    let gid = if group_name.is_empty() {
        if let Some(found) = &found {
            let of_user =
                lines(group, group_line).filter(|line| line.members.contains(&found.name));
            groups.extend(of_user.map(|line| line.gid));
        }
        default_gid
    } else {
        let number: Option<u32> = group_name.parse().ok();
        let found = lines(group, group_line)
            .find(|line| line.name == group_name || Some(line.gid) == number);
        found
            .map(|line| line.gid)
            .or(number.filter(|gid| *gid <= MAX_ID))
            .ok_or_else(|| format!("no group {group_name:?} in the image's /etc/group"))?
    };
    groups.insert(gid);
    Ok(User {
        uid,
        gid,
        groups: groups.into_iter().collect(),
    })
}

/// The lines that are what they should be.
fn lines<'a, T: 'a>(
    text: &'a str,
    parse: fn(Vec<&'a str>) -> Option<T>,
) -> impl Iterator<Item = T> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(move |line| parse(line.split(':').collect()))
}

fn passwd_line(fields: Vec<&str>) -> Option<PasswdLine<'_>> {
    Some(PasswdLine {
        name: fields.first()?,
        uid: fields.get(2)?.parse().ok()?,
        gid: fields.get(3)?.parse().ok()?,
    })
}

fn group_line(fields: Vec<&str>) -> Option<GroupLine<'_>> {
    Some(GroupLine {
        name: fields.first()?,
        gid: fields.get(2)?.parse().ok()?,
        members: fields
            .get(3)
            .map(|members| members.split(',').filter(|name| !name.is_empty()).collect())
            .unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\nbad:x:many:0::/:\n\
        www:x:33:34:www:/var/www:/bin/false\n1000:x:7:8::/:\nlast:x:2147483648:5::/:";
    const GROUP: &str =
        "root:x:0:\nadm:x:4:www,root\nwww:x:34:\naudio:x:29:www\nall:x:100:root,www\n";

    #[test]
    fn users() {
        for (user, uid, gid, groups) in [
            ("", 0, 0, &[0, 4, 100][..]),
            ("root", 0, 0, &[0, 4, 100]),
            ("www", 33, 34, &[4, 29, 34, 100]),
            ("33", 33, 34, &[4, 29, 34, 100]),
            ("www:adm", 33, 4, &[4]),
            ("www:4711", 33, 4711, &[4711]),
            ("33:audio", 33, 29, &[29]),
            // A name of digits is found as a name first.
            ("1000", 7, 8, &[8]),
            ("4711", 4711, 0, &[0]),
            ("4711:100", 4711, 100, &[100]),
            (":adm", 0, 4, &[4]),
        ] {
            let expected = User {
                uid,
                gid,
                groups: groups.to_vec(),
            };
            assert_eq!(look_up(user, PASSWD, GROUP), Ok(expected), "{user:?}");
        }
        assert_eq!(look_up("", "", "").unwrap().groups, [0]);
    }

    #[test]
    fn names_that_are_not_there() {
        for (user, error) in [
            ("nobody", "no user \"nobody\" in the image's /etc/passwd"),
            ("bad", "no user \"bad\" in the image's /etc/passwd"),
            (
                "www:nogroup",
                "no group \"nogroup\" in the image's /etc/group",
            ),
            ("-1", "no user \"-1\" in the image's /etc/passwd"),
            (
                "4294967296",
                "no user \"4294967296\" in the image's /etc/passwd",
            ),
            (
                "2147483649",
                "no user \"2147483649\" in the image's /etc/passwd",
            ),
            (
                "0:2147483648",
                "no group \"2147483648\" in the image's /etc/group",
            ),
        ] {
            assert_eq!(look_up(user, PASSWD, GROUP).unwrap_err(), error);
        }
    }
}
