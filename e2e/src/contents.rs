//! What a test puts into an environment to see whether all of it stays: one of everything that a file system keeps, in
//! places that peers lose.
//!
//! The template has setcap(8) and getcap(8), but neither setfattr(1) nor setfacl(1); what these would do is done by
//! Debian's minimal perl with system calls of x86-64. A tool that is missing fails the test.

use crate::Environment;

/// Shell words that give a file, which is to be named behind them, the attribute `user.vivarium` and an access control
/// list by which user 33 may read it: setxattr(2) is 188, and the list is as in `linux/posix_acl_xattr.h`.
pub const SET_ATTRIBUTES: &str = r#"perl -e '
    my $file = shift;
    my $none = 0xffffffff;
    my $list = pack("V(vvV)*", 2, 1, 6, $none, 2, 4, 33, 4, 4, $none, 16, 4, $none, 32, 0, $none);
    my %all = ("user.vivarium" => "kept", "system.posix_acl_access" => $list);
    while (my ($name, $value) = each %all) {
        syscall(188, $file, $name, $value, length($value), 0) == 0 or die "setxattr $name: $!";
    }'"#;

/// Shell words that print the extended attributes of the files that are named on the standard input, one a line, with
/// values in hexadecimal: access control lists (`system.posix_acl_access`) and file capabilities
/// (`security.capability`) are among them. llistxattr(2) is 195, lgetxattr(2) 192.
pub const ATTRIBUTES: &str = r#"perl -ne '
    chomp;
    my ($file, $list) = ($_, "\0" x 65536);
    my $length = syscall(195, $file, $list, 65536);
    $length >= 0 or die "llistxattr $file: $!";
    my @names = split(/\0/, substr($list, 0, $length));
    for my $name (sort @names) {
        my ($key, $value) = ($name, "\0" x 65536);
        my $size = syscall(192, $file, $key, $value, 65536);
        $size >= 0 or die "lgetxattr $file $name: $!";
        print "$file $name ", unpack("H*", substr($value, 0, $size)), "\n";
    }'"#;

/// Writes one of everything: in /usr, /etc, /opt, /var, /srv and /home, with owners, links, capabilities, attributes
/// and holes, and removes something. Gives what [`read_everything`] reads of it.
pub fn write_everything(ve: &Environment) -> String {
    ve.sh("set -e
        echo changed > /usr/share/common-licenses/vivarium-test; echo 'edited = yes' >> /etc/adduser.conf
        mkdir -p /opt/app /srv/data; echo data > /srv/data/file
        ln /srv/data/file /srv/data/hard; ln -s file /srv/data/soft; mkfifo /srv/data/fifo
        useradd keeper; chown keeper: /srv/data/file; chmod 4750 /srv/data/file
        truncate -s 100M /srv/data/sparse
        printf island | dd of=/srv/data/sparse bs=1 seek=50000000 conv=notrunc status=none
        cp /bin/true /srv/data/capable; setcap cap_net_raw+ep /srv/data/capable; touch /srv/data/attributed
        rm -rf /usr/share/man; mv /usr/share/doc /usr/share/doc.moved
        echo user > /home/note; echo docker > /var/lib/docker/inside");
    ve.sh(&format!("{SET_ATTRIBUTES} /srv/data/attributed && sync"));
    // A hole is one here too, or its blocks would tell nothing later.
    ve.sh("test $(stat -c %b /srv/data/sparse) -lt 1000");
    let written = read_everything(ve);
    for part in ["island", "cap_net_raw=ep", "user.vivarium 6b657074", "system.posix_acl_access 02000000"] {
        assert!(written.contains(part), "{part} is not in {written}");
    }
    assert!(!written.contains("is-back"), "{written}");
    written
}

/// What [`write_everything`] wrote, as text.
pub fn read_everything(ve: &Environment) -> String {
    let files = ve.sh("set -e
        cat /usr/share/common-licenses/vivarium-test; tail -1 /etc/adduser.conf
        stat -c '%n %U %a %h %F %s' /srv/data/file /srv/data/hard /srv/data/soft /srv/data/fifo /srv/data/sparse
        stat -c '%n %b' /srv/data/sparse; tail -c +50000001 /srv/data/sparse | head -c 6; echo; getcap /srv/data/capable
        cat /srv/data/soft; test -e /usr/share/man && echo man-is-back; test -e /usr/share/doc && echo doc-is-back
        ls /usr/share/doc.moved | wc -l; cat /home/note /var/lib/docker/inside; cat /etc/machine-id
        md5sum < /etc/ssh/ssh_host_ed25519_key");
    let attributes = ve.sh(&format!("echo /srv/data/attributed | {ATTRIBUTES}"));
    format!("{files}\n{attributes}")
}
